//! Expressions and scopes as English sentences, for people who do not read Cedar.
//!
//! A condition becomes a clause (`the argument path starts with "/srv/"`), an operand a noun (`the principal's dept`).
//! Clauses are made in both senses: a negated comparison reads as its opposite, which is exact because Cedar errs in
//! the same cases for both. What has no short opposite reads `not (...)`.
//!
//! Policy text is untrusted and may be deep or wide: a sentence ends at a number of bytes, an expression at a number of
//! levels, a list after a few items, each with `...`; strings are escaped, so nothing steers a terminal.

use smallvec::SmallVec;

use super::super::extension::{self, ExtFn};
use super::super::program::push_attr;
use super::super::tree::{ActionScope, Binary, EntityRef, ExprId, Kids, Node, Scope, Sym, Tree, Unary, Var};
use super::super::words;
use crate::limits::{EXPLAIN_DEPTH_MAX, EXPLAIN_ITEMS_MAX, EXPLAIN_SENTENCE_BYTES_MAX, EXPLAIN_TEXT_CHARS_MAX};
use crate::uid::EntityUid;
use crate::value::{Val, Value};

/// A boolean expression as a clause; `negated` gives the clause that is true when the expression is false.
pub fn clause(tree: &Tree, id: ExprId, negated: bool) -> String {
    let mut speaker = Speaker { tree, text: String::new(), depth: 0 };
    speaker.clause(id, negated);
    speaker.text
}

/// The same for a clause that stands beside others: in brackets if it is made of clauses itself.
pub fn clause_among(tree: &Tree, id: ExprId) -> String {
    let mut speaker = Speaker { tree, text: String::new(), depth: 0 };
    speaker.part(id, false);
    speaker.text
}

/// A request variable and attributes read from it, as a noun.
pub fn path_noun(tree: &Tree, root: Var, attrs: &[Sym]) -> String {
    let names: SmallVec<[&str; 4]> = attrs.iter().map(|sym| tree.text(*sym)).collect();
    let (start, rest) = match (root, names.as_slice()) {
        (Var::Context, ["input"]) => return "the arguments".to_owned(),
        (Var::Context, ["input", rest @ ..]) => ("the argument ", rest),
        (Var::Context, rest @ [_, ..]) => ("context ", rest),
        (Var::Context, []) => return "the context".to_owned(),
        (Var::Principal, rest) => ("the principal", rest),
        (Var::Action, rest) => ("the action", rest),
        (Var::Resource, rest) => ("the resource", rest),
    };
    let mut text = start.to_owned();
    if root != Var::Context && !rest.is_empty() {
        text.push_str("'s ");
    }
    text.push_str(&dotted(rest));
    text
}

/// Attribute names as `a.b`, `"any text"` where a name is no identifier.
fn dotted(names: &[&str]) -> String {
    let mut path = String::new();
    for name in names.iter().take(EXPLAIN_ITEMS_MAX) {
        push_attr(&mut path, &cut(name, EXPLAIN_TEXT_CHARS_MAX));
    }
    if names.len() > EXPLAIN_ITEMS_MAX {
        path.push_str("...");
    }
    if let Some(rest) = path.strip_prefix('.') {
        return rest.to_owned();
    }
    match path.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((first, rest)) if names.len() <= 1 || !rest.is_empty() => format!("{first}{rest}"),
        _ => path,
    }
}

/// The first characters of a text, with `...` if there are more.
pub fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A text in quotes, escaped and cut.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", cut(text, EXPLAIN_TEXT_CHARS_MAX).escape_debug())
}

/// A value as people write it: extension values without their constructor.
pub fn constant(value: &Value<'_>) -> String {
    match value {
        Value::Str(text) => quoted(text),
        Value::Decimal(value) => bare(&extension::decimal_text(*value)),
        Value::Datetime(value) => bare(&extension::datetime_text(*value)),
        Value::Duration(value) => bare(&extension::duration_text(*value)),
        Value::Ip(value) => bare(&extension::ip_text(value)),
        Value::Set(_) | Value::SetTemp(_) => {
            let shown: Vec<String> = elements(value).take(EXPLAIN_ITEMS_MAX).map(|item| constant_flat(&item)).collect();
            let more = elements(value).count().saturating_sub(shown.len());
            let tail = if more > 0 { format!(", and {more} more") } else { String::new() };
            format!("[{}{tail}]", shown.join(", "))
        }
        other => cut(&words::value_text(other), EXPLAIN_TEXT_CHARS_MAX),
    }
}

/// What stands in the quotes of `decimal("1.5")`.
fn bare(call: &str) -> String {
    call.split('"').nth(1).unwrap_or(call).to_owned()
}

/// An element of a set: nested sets in Cedar's text, which is bounded.
fn constant_flat(value: &Value<'_>) -> String {
    match value {
        Value::Set(_) | Value::SetTemp(_) => cut(&words::value_text(value), EXPLAIN_TEXT_CHARS_MAX),
        other => constant(other),
    }
}

fn elements<'v>(value: &Value<'v>) -> impl Iterator<Item = Value<'v>> {
    value.elements().into_iter().flat_map(crate::value::Elements::iter)
}

/// `a, b or c`; after a few items only their number.
fn alternatives(items: impl Iterator<Item = String>) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut more = 0usize;
    for item in items {
        if shown.len() < EXPLAIN_ITEMS_MAX {
            shown.push(item);
        } else {
            more = more.saturating_add(1);
        }
    }
    if more > 0 {
        return format!("{} or {more} more", shown.join(", "));
    }
    match shown.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// How two ordered values compare.
#[derive(Clone, Copy)]
enum Order {
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Order {
    const fn negated(self, negated: bool) -> Self {
        match (self, negated) {
            (same, false) => same,
            (Self::Less, true) => Self::AtLeast,
            (Self::AtMost, true) => Self::More,
            (Self::More, true) => Self::AtMost,
            (Self::AtLeast, true) => Self::Less,
        }
    }

    /// The same relation with its sides exchanged.
    const fn turned(self) -> Self {
        match self {
            Self::Less => Self::More,
            Self::AtMost => Self::AtLeast,
            Self::More => Self::Less,
            Self::AtLeast => Self::AtMost,
        }
    }

    const fn words(self, of_time: bool) -> &'static str {
        match (self, of_time) {
            (Self::Less, false) => " is less than ",
            (Self::AtMost, false) => " is at most ",
            (Self::More, false) => " is more than ",
            (Self::AtLeast, false) => " is at least ",
            (Self::Less, true) => " is before ",
            (Self::AtMost, true) => " is no later than ",
            (Self::More, true) => " is after ",
            (Self::AtLeast, true) => " is no earlier than ",
        }
    }
}

struct Speaker<'t> {
    tree: &'t Tree,
    text: String,
    depth: usize,
}

impl<'t> Speaker<'t> {
    /// Goes one level down; false, with `...` written once, where the sentence has to end.
    fn enter(&mut self) -> bool {
        if self.depth >= EXPLAIN_DEPTH_MAX || self.text.len() >= EXPLAIN_SENTENCE_BYTES_MAX {
            if !self.text.ends_with("...") {
                self.text.push_str("...");
            }
            return false;
        }
        self.depth = self.depth.saturating_add(1);
        true
    }

    fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn say(&mut self, text: &str) {
        // The last piece may pass the bound by its own length, which is bounded too.
        if self.text.len() < EXPLAIN_SENTENCE_BYTES_MAX {
            self.text.push_str(text);
        }
    }

    fn clause(&mut self, id: ExprId, negated: bool) {
        if !self.enter() {
            return;
        }
        match self.tree.node(id) {
            Node::Unary(Unary::Not, inner) => self.clause(inner, !negated),
            Node::Const(index) if let Val::Bool(value) = self.tree.constant(index) => {
                self.say(if *value == negated { "never" } else { "always" });
            }
            Node::And(kids) => self.chain(kids, " and ", negated),
            Node::Or(kids) => self.any(kids, negated),
            Node::If(test, then, otherwise) => self.choice(test, then, otherwise, negated),
            Node::Unary(Unary::IsEmpty, inner) => {
                self.noun(inner);
                self.say(if negated { " is not empty" } else { " is empty" });
            }
            Node::Binary(op, left, right) => self.relation(id, op, left, right, negated),
            Node::Call(function, kids) => self.question(id, function, kids, negated),
            Node::Has(inner, syms) => self.has(inner, syms, negated),
            Node::Like(inner, pattern) => {
                self.noun(inner);
                let pattern = self.tree.pattern(pattern).map_or_else(String::new, ToString::to_string);
                self.say(&like_words(&pattern, negated));
            }
            Node::Is(inner, sym) => {
                self.noun(inner);
                self.say(if negated { " is not of type " } else { " is of type " });
                self.say(&type_name(self.tree.text(sym)));
            }
            _ => self.truth(id, negated),
        }
        self.leave();
    }

    /// A value standing where only a boolean may stand.
    fn truth(&mut self, id: ExprId, negated: bool) {
        self.noun(id);
        self.say(if negated { " is false" } else { " is true" });
    }

    fn chain(&mut self, kids: Kids, word: &str, negated: bool) {
        if negated {
            self.say("not (");
        }
        for (position, kid) in self.tree.kids(kids).iter().enumerate() {
            if self.text.len() >= EXPLAIN_SENTENCE_BYTES_MAX {
                self.text.push_str(" ...");
                break;
            }
            if position > 0 {
                self.say(word);
            }
            self.part(*kid, false);
        }
        if negated {
            self.text.push(')');
        }
    }

    /// A clause inside another one: in brackets if it is made of clauses itself.
    fn part(&mut self, id: ExprId, negated: bool) {
        let compound = matches!(self.tree.node(id), Node::And(_) | Node::If(..))
            || matches!(self.tree.node(id), Node::Or(kids) if self.one_path(kids).is_none());
        if compound && !negated {
            self.say("(");
            self.clause(id, false);
            self.text.push(')');
        } else {
            self.clause(id, negated);
        }
    }

    fn any(&mut self, kids: Kids, negated: bool) {
        let Some((operand, values)) = self.one_path(kids) else { return self.chain(kids, " or ", negated) };
        self.noun(operand);
        self.say(if negated { " is none of " } else { " is one of " });
        let list = alternatives(values.iter().map(|value| constant_flat(&value.as_value())));
        self.say(&list);
    }

    /// If every alternative compares the same path with a constant: the path and the constants.
    fn one_path(&self, kids: Kids) -> Option<(ExprId, Vec<&'t Val>)> {
        let tree = self.tree;
        let mut values = Vec::new();
        let mut first: Option<ExprId> = None;
        for kid in tree.kids(kids) {
            let Node::Binary(Binary::Eq, left, right) = tree.node(*kid) else { return None };
            let (operand, value) = match (tree.as_const(left), tree.as_const(right)) {
                (None, Some(value)) => (left, value),
                (Some(value), None) => (right, value),
                _ => return None,
            };
            let path = tree.as_path(operand)?;
            match first {
                None => first = Some(operand),
                Some(known) if tree.as_path(known).as_ref() == Some(&path) => {}
                Some(_) => return None,
            }
            values.push(value);
        }
        first.map(|operand| (operand, values))
    }

    fn choice(&mut self, test: ExprId, then: ExprId, otherwise: ExprId, negated: bool) {
        self.say("if ");
        self.part(test, false);
        self.say(" then ");
        self.part_negated(then, negated);
        self.say(", otherwise ");
        self.part_negated(otherwise, negated);
    }

    /// A branch of a choice: negating a choice negates its branches.
    fn part_negated(&mut self, id: ExprId, negated: bool) {
        if negated { self.clause(id, true) } else { self.part(id, false) }
    }

    fn has(&mut self, inner: ExprId, syms: Kids, negated: bool) {
        if let Some((root, mut attrs)) = self.tree.as_path(inner) {
            attrs.extend_from_slice(self.tree.kids(syms));
            let noun = path_noun(self.tree, root, &attrs);
            let verb = if noun == "the arguments" { " are" } else { " is" };
            self.say(&noun);
            self.say(verb);
            self.say(if negated { " not given" } else { " given" });
            return;
        }
        let names: Vec<&str> = self.tree.kids(syms).iter().map(|sym| self.tree.text(*sym)).collect();
        self.noun(inner);
        self.say(if negated { " has no attribute " } else { " has the attribute " });
        self.say(&dotted(&names));
    }

    fn relation(&mut self, id: ExprId, op: Binary, left: ExprId, right: ExprId, negated: bool) {
        let words = match op {
            Binary::Eq => return self.equal(left, right, negated),
            Binary::Less => return self.ordered(Order::Less, left, right, negated),
            Binary::LessEq => return self.ordered(Order::AtMost, left, right, negated),
            Binary::In => return self.within(left, right, negated),
            Binary::Contains => return self.contains(left, right, negated),
            Binary::ContainsAll if negated => " does not contain all of ",
            Binary::ContainsAll => " contains all of ",
            Binary::ContainsAny if negated => " contains none of ",
            Binary::ContainsAny => " contains any of ",
            Binary::HasTag if negated => " does not have the tag ",
            Binary::HasTag => " has the tag ",
            Binary::Add | Binary::Sub | Binary::Mul | Binary::GetTag => return self.truth(id, negated),
        };
        self.noun(left);
        self.say(words);
        self.noun(right);
    }

    fn equal(&mut self, left: ExprId, right: ExprId, negated: bool) {
        // A constant reads better behind the verb.
        let constant_first = self.tree.as_const(left).is_some() && self.tree.as_const(right).is_none();
        let (left, right) = if constant_first { (right, left) } else { (left, right) };
        self.noun(left);
        self.say(if negated { " is not " } else { " is " });
        self.noun(right);
    }

    fn ordered(&mut self, order: Order, left: ExprId, right: ExprId, negated: bool) {
        let constant_first = self.tree.as_const(left).is_some() && self.tree.as_const(right).is_none();
        let order = order.negated(negated);
        let (left, order, right) = if constant_first { (right, order.turned(), left) } else { (left, order, right) };
        let of_time = [left, right].iter().any(|side| matches!(self.tree.as_const(*side), Some(Val::Datetime(_))));
        self.noun(left);
        self.say(order.words(of_time));
        self.noun(right);
    }

    fn within(&mut self, left: ExprId, right: ExprId, negated: bool) {
        self.noun(left);
        self.say(if negated { " is not in " } else { " is in " });
        match self.tree.as_const(right) {
            Some(value @ Val::Set(_)) => {
                let list = alternatives(elements(&value.as_value()).map(|item| constant_flat(&item)));
                self.say("any of ");
                self.say(&list);
            }
            _ => self.noun(right),
        }
    }

    fn contains(&mut self, left: ExprId, right: ExprId, negated: bool) {
        if let Some(value @ Val::Set(_)) = self.tree.as_const(left) {
            let list = alternatives(elements(&value.as_value()).map(|item| constant_flat(&item)));
            self.noun(right);
            self.say(if negated { " is none of " } else { " is one of " });
            self.say(&list);
            return;
        }
        self.noun(left);
        self.say(if negated { " does not contain " } else { " contains " });
        self.noun(right);
    }

    /// A call that answers yes or no.
    fn question(&mut self, id: ExprId, function: ExtFn, kids: Kids, negated: bool) {
        let order = match function {
            ExtFn::LessThan => Some(Order::Less),
            ExtFn::LessThanOrEqual => Some(Order::AtMost),
            ExtFn::GreaterThan => Some(Order::More),
            ExtFn::GreaterThanOrEqual => Some(Order::AtLeast),
            _ => None,
        };
        match (order, function, self.tree.kids(kids)) {
            (Some(order), _, &[left, right]) => self.ordered(order, left, right, negated),
            (None, ExtFn::IsInRange, &[left, right]) => {
                self.noun(left);
                self.say(if negated { " is outside the range " } else { " is in the range " });
                self.noun(right);
            }
            (None, ExtFn::IsIpv4 | ExtFn::IsIpv6 | ExtFn::IsLoopback | ExtFn::IsMulticast, &[of]) => {
                self.noun(of);
                self.say(if negated { " is not " } else { " is " });
                self.say(match function {
                    ExtFn::IsIpv4 => "an IPv4 address",
                    ExtFn::IsIpv6 => "an IPv6 address",
                    ExtFn::IsLoopback => "a loopback address",
                    _ => "a multicast address",
                });
            }
            _ => self.truth(id, negated),
        }
    }

    fn noun(&mut self, id: ExprId) {
        if let Some((root, attrs)) = self.tree.as_path(id) {
            let noun = path_noun(self.tree, root, &attrs);
            return self.say(&noun);
        }
        if let Some(value) = self.tree.as_const(id) {
            return self.say(&constant(&value.as_value()));
        }
        if !self.enter() {
            return;
        }
        match self.tree.node(id) {
            Node::Attr(inner, sym) => {
                let name = dotted(&[self.tree.text(sym)]);
                self.say(&format!("the attribute {name} of "));
                self.noun(inner);
            }
            Node::Unary(Unary::Neg, inner) => {
                self.say("minus ");
                self.term(inner);
            }
            Node::Binary(op @ (Binary::Add | Binary::Sub | Binary::Mul), left, right) => {
                self.term(left);
                self.say(match op {
                    Binary::Add => " plus ",
                    Binary::Sub => " minus ",
                    _ => " times ",
                });
                self.term(right);
            }
            Node::Binary(Binary::GetTag, of, name) => {
                self.say("the tag ");
                self.noun(name);
                self.say(" of ");
                self.noun(of);
            }
            Node::Call(function, kids) => self.call(id, function, kids),
            Node::If(test, then, otherwise) => {
                self.say("(");
                self.noun(then);
                self.say(" if ");
                self.part(test, false);
                self.say(", otherwise ");
                self.noun(otherwise);
                self.text.push(')');
            }
            Node::Set(kids) => {
                self.say("the set of ");
                self.list(kids);
            }
            Node::Record { keys, values } => {
                let names: Vec<&str> =
                    self.tree.kids(keys).iter().take(EXPLAIN_ITEMS_MAX).map(|key| self.tree.text(*key)).collect();
                let names: Vec<String> = names.into_iter().map(|name| dotted(&[name])).collect();
                self.say(&format!("the record of {} (from ", names.join(", ")));
                self.list(values);
                self.text.push(')');
            }
            Node::BadCall(function) => self.say(&format!("an error ({}() of an invalid constant)", function.name())),
            _ => {
                self.say("whether (");
                self.clause(id, false);
                self.text.push(')');
            }
        }
        self.leave();
    }

    fn list(&mut self, kids: Kids) {
        for (position, kid) in self.tree.kids(kids).iter().enumerate() {
            if position > 0 {
                self.say(", ");
            }
            if position == EXPLAIN_ITEMS_MAX {
                self.text.push_str("...");
                return;
            }
            self.noun(*kid);
        }
    }

    /// An operand of arithmetic: in brackets if it is arithmetic itself.
    fn term(&mut self, id: ExprId) {
        let arithmetic = matches!(
            self.tree.node(id),
            Node::Binary(Binary::Add | Binary::Sub | Binary::Mul, ..) | Node::Unary(Unary::Neg, _)
        );
        if arithmetic {
            self.say("(");
            self.noun(id);
            self.text.push(')');
        } else {
            self.noun(id);
        }
    }

    fn since(&mut self, kids: Kids) {
        if let &[later, earlier] = self.tree.kids(kids) {
            self.say("the time from ");
            self.noun(earlier);
            self.say(" to ");
            self.noun(later);
        }
    }

    /// A call that yields a value.
    fn call(&mut self, id: ExprId, function: ExtFn, kids: Kids) {
        let (before, between, after) = match function {
            ExtFn::Decimal => ("", "", " read as a decimal"),
            ExtFn::Ip => ("", "", " read as an IP address"),
            ExtFn::Datetime => ("", "", " read as a time"),
            ExtFn::Duration => ("", "", " read as a duration"),
            ExtFn::Offset => ("", " plus ", ""),
            ExtFn::DurationSince => return self.since(kids),
            ExtFn::ToDate => ("the date of ", "", ""),
            ExtFn::ToTime => ("the time of day of ", "", ""),
            ExtFn::ToMilliseconds => ("the number of milliseconds in ", "", ""),
            ExtFn::ToSeconds => ("the number of seconds in ", "", ""),
            ExtFn::ToMinutes => ("the number of minutes in ", "", ""),
            ExtFn::ToHours => ("the number of hours in ", "", ""),
            ExtFn::ToDays => ("the number of days in ", "", ""),
            _ => {
                self.say("whether (");
                self.question(id, function, kids, false);
                self.text.push(')');
                return;
            }
        };
        self.say(before);
        for (position, kid) in self.tree.kids(kids).iter().take(EXPLAIN_ITEMS_MAX).enumerate() {
            if position > 0 {
                self.say(between);
            }
            self.noun(*kid);
        }
        self.say(after);
    }
}

/// A pattern, in Cedar's escapes, as a verb. Only patterns with a short exact description are paraphrased.
fn like_words(pattern: &str, negated: bool) -> String {
    let mut literals = vec![String::new()];
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match (c, literals.last_mut()) {
            ('*', _) => literals.push(String::new()),
            ('\\', Some(literal)) => match chars.next() {
                Some('*') => literal.push('*'),
                Some(escaped) => literal.extend(['\\', escaped]),
                None => literal.push('\\'),
            },
            (other, Some(literal)) => literal.push(other),
            (_, None) => {}
        }
    }
    let verb = |plain: &str, not: &str, text: &str| {
        format!(" {} \"{}\"", if negated { not } else { plain }, cut(text, EXPLAIN_TEXT_CHARS_MAX))
    };
    match literals.as_slice() {
        [exact] => verb("is", "is not", exact),
        [a, b] if a.is_empty() && b.is_empty() && !negated => " is any text".to_owned(),
        [a, b] if a.is_empty() && b.is_empty() => verb("matches", "does not match", pattern),
        [prefix, b] if b.is_empty() => verb("starts with", "does not start with", prefix),
        [a, suffix] if a.is_empty() => verb("ends with", "does not end with", suffix),
        [a, infix, b] if a.is_empty() && b.is_empty() => verb("contains", "does not contain", infix),
        _ => verb("matches", "does not match", pattern),
    }
}

/// An entity in a scope.
fn entity(reference: &EntityRef, slot: &str) -> String {
    match reference {
        EntityRef::Uid(uid) => uid_text(uid),
        EntityRef::Slot => slot.to_owned(),
    }
}

/// A type's name, cut and safe to print: requests may carry any text for it.
pub fn type_name(ty: &str) -> String {
    cut(ty, EXPLAIN_TEXT_CHARS_MAX).escape_debug().to_string()
}

/// An entity as Cedar writes it, cut.
pub fn uid_text(uid: &EntityUid) -> String {
    format!("{}::{}", type_name(uid.ty()), quoted(uid.id()))
}

/// Who a principal scope speaks of.
pub fn principal(scope: &Scope) -> String {
    who(scope, "anyone", "?principal")
}

/// What a resource scope speaks of.
pub fn resource(scope: &Scope) -> String {
    who(scope, "anything", "?resource")
}

fn who(scope: &Scope, any: &str, slot: &str) -> String {
    match scope {
        Scope::Any => any.to_owned(),
        Scope::Eq(reference) => entity(reference, slot),
        Scope::In(reference) => format!("{any} in {}", entity(reference, slot)),
        Scope::Is(ty) => format!("any {}", type_name(ty)),
        Scope::IsIn(ty, reference) => format!("any {} in {}", type_name(ty), entity(reference, slot)),
    }
}

/// An action by its id where that is unmistakable, else as Cedar writes it.
pub fn action_name(uid: &EntityUid) -> String {
    let plain = uid.id().chars().all(|c| c.is_ascii_alphanumeric() || "_-.:/".contains(c));
    if uid.ty() == "Action" && plain && !uid.id().is_empty() {
        cut(uid.id(), EXPLAIN_TEXT_CHARS_MAX)
    } else {
        uid_text(uid)
    }
}

/// What an action scope lets one do.
pub fn action(scope: &ActionScope) -> String {
    match scope {
        ActionScope::Any => "do anything".to_owned(),
        ActionScope::Eq(uid) => action_name(uid),
        ActionScope::In(uids) => match &**uids {
            [] => "do nothing (its list of actions is empty)".to_owned(),
            [group] => format!("do {} (or an action in it)", action_name(group)),
            _ => format!("do {} (or an action in them)", alternatives(uids.iter().map(|uid| action_name(uid)))),
        },
    }
}

/// Why a principal or resource scope does not match, as a clause.
pub fn scope_missed(scope: &Scope, noun: &str, uid: &EntityUid) -> String {
    match scope {
        Scope::Any => format!("{noun} is anything"),
        Scope::Eq(reference) => format!("{noun} is not {}", entity(reference, "the slot's value")),
        Scope::Is(ty) => format!("{noun} is not of type {}", type_name(ty)),
        Scope::IsIn(ty, _) if **ty != *uid.ty() => format!("{noun} is not of type {}", type_name(ty)),
        Scope::In(reference) | Scope::IsIn(_, reference) => {
            format!("{noun} is not in {}", entity(reference, "the slot's value"))
        }
    }
}

/// Why an action scope does not match, as a clause.
pub fn action_missed(scope: &ActionScope) -> String {
    match scope {
        ActionScope::Any => "the action is anything".to_owned(),
        ActionScope::Eq(uid) => format!("the action is not {}", action_name(uid)),
        ActionScope::In(uids) => {
            format!("the action is not in {}", alternatives(uids.iter().map(|uid| action_name(uid))))
        }
    }
}
