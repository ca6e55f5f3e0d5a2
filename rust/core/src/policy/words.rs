//! Values and expressions back in Cedar's own text, for messages, listings and explanations.
//!
//! Text is shortened: lists after a few elements, expressions below a few levels. It is for people; nothing parses it.

use std::fmt::Write as _;

use super::extension::{self, ExtFn};
use super::program::push_attr;
use super::tree::{Binary, ExprId, Kids, Node, Tree, Unary};
use crate::value::Value;

/// Elements of a set or fields of a record that are shown.
const ELEMENTS_MAX: usize = 8;
/// Levels of an expression that are shown.
const DEPTH_MAX: usize = 12;

/// A value in Cedar text.
pub fn value_text(value: &Value<'_>) -> String {
    let mut text = String::new();
    write_value(&mut text, value, 0);
    text
}

fn write_value(text: &mut String, value: &Value<'_>, depth: usize) {
    if depth > DEPTH_MAX {
        text.push_str("...");
        return;
    }
    match value {
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Long(value) => text.push_str(&value.to_string()),
        Value::Str(value) => write_string(text, value),
        Value::Entity(uid) => text.push_str(&uid.to_string()),
        Value::Decimal(value) => text.push_str(&extension::decimal_text(*value)),
        Value::Datetime(value) => text.push_str(&extension::datetime_text(*value)),
        Value::Duration(value) => text.push_str(&extension::duration_text(*value)),
        Value::Ip(value) => text.push_str(&extension::ip_text(value)),
        Value::RecordArgs(_) => text.push_str("{...}"),
        Value::Unrepresentable => text.push_str("(a value Cedar cannot represent)"),
        Value::Set(_) | Value::SetTemp(_) => {
            let elements = value.elements().into_iter().flat_map(super::super::value::Elements::iter);
            text.push('[');
            list(text, elements, |text, element| write_value(text, &element, depth.saturating_add(1)));
            text.push(']');
        }
        Value::Record(_) | Value::RecordTemp(_) => {
            text.push('{');
            if let Some(fields) = value.fields() {
                list(text, (0..fields.len()).filter_map(|at| fields.at(at)), |text, (key, value)| {
                    write_string(text, key);
                    text.push_str(": ");
                    write_value(text, &value, depth.saturating_add(1));
                });
            }
            text.push('}');
        }
    }
}

fn write_string(text: &mut String, value: &str) {
    text.push('"');
    text.extend(value.escape_debug());
    text.push('"');
}

/// Writes items with commas, the first few of them.
fn list<T>(text: &mut String, items: impl Iterator<Item = T>, mut write: impl FnMut(&mut String, T)) {
    for (position, item) in items.enumerate() {
        if position > 0 {
            text.push_str(", ");
        }
        if position == ELEMENTS_MAX {
            text.push_str("...");
            return;
        }
        write(text, item);
    }
}

/// An expression in Cedar text.
pub fn expression(tree: &Tree, id: ExprId) -> String {
    let mut text = String::new();
    write_expression(tree, id, &mut text, 0);
    text
}

fn write_expression(tree: &Tree, id: ExprId, text: &mut String, depth: usize) {
    if depth > DEPTH_MAX {
        text.push_str("...");
        return;
    }
    let deeper = depth.saturating_add(1);
    let write = |text: &mut String, id: ExprId| write_expression(tree, id, text, deeper);
    match tree.node(id) {
        Node::Const(index) => write_value(text, &tree.constant(index).as_value(), 0),
        Node::Var(var) => text.push_str(var.name()),
        Node::If(guard, then, otherwise) => conditional(tree, [guard, then, otherwise], text, deeper),
        Node::And(kids) => chain(tree, kids, text, " && ", deeper),
        Node::Or(kids) => chain(tree, kids, text, " || ", deeper),
        Node::Unary(Unary::Not, inner) if negated_comparison(tree, inner, text, deeper) => {}
        Node::Unary(op, inner) => {
            let (before, after) = match op {
                Unary::Not => ("!", ""),
                Unary::Neg => ("-", ""),
                Unary::IsEmpty => ("", ".isEmpty()"),
            };
            text.push_str(before);
            write(text, inner);
            text.push_str(after);
        }
        Node::Binary(op, left, right) => binary(tree, op, left, right, text, deeper),
        Node::Call(function, kids) => call(tree, function, kids, text, deeper),
        Node::Attr(inner, sym) => {
            write(text, inner);
            push_attr(text, tree.text(sym));
        }
        Node::Has(inner, syms) => {
            write(text, inner);
            text.push_str(" has ");
            let names: Vec<&str> = tree.kids(syms).iter().map(|sym| tree.text(*sym)).collect();
            text.push_str(&names.join("."));
        }
        Node::Like(inner, pattern) => {
            write(text, inner);
            let pattern = tree.pattern(pattern).map_or_else(String::new, ToString::to_string);
            let _ = write!(text, " like \"{pattern}\"");
        }
        Node::Is(inner, sym) => {
            write(text, inner);
            let _ = write!(text, " is {}", tree.text(sym));
        }
        Node::Set(kids) => {
            text.push('[');
            list(text, tree.kids(kids).iter(), |text, kid| write(text, *kid));
            text.push(']');
        }
        Node::Record { keys, values } => {
            text.push('{');
            let fields = tree.kids(keys).iter().zip(tree.kids(values));
            list(text, fields, |text, (key, value)| {
                write_string(text, tree.text(*key));
                text.push_str(": ");
                write(text, *value);
            });
            text.push('}');
        }
        Node::BadCall(function) => {
            let _ = write!(text, "{}(...)", function.name());
        }
    }
}

/// The parser reads `>`, `>=` and `!=` as negations; this writes them back. False if it is no such negation.
fn negated_comparison(tree: &Tree, id: ExprId, text: &mut String, depth: usize) -> bool {
    let Node::Binary(op, left, right) = tree.node(id) else { return false };
    let operator = match op {
        Binary::LessEq => " > ",
        Binary::Less => " >= ",
        Binary::Eq => " != ",
        _ => return false,
    };
    write_expression(tree, left, text, depth);
    text.push_str(operator);
    write_expression(tree, right, text, depth);
    true
}

fn conditional(tree: &Tree, parts: [ExprId; 3], text: &mut String, depth: usize) {
    for (word, part) in ["(if ", " then ", " else "].into_iter().zip(parts) {
        text.push_str(word);
        write_expression(tree, part, text, depth);
    }
    text.push(')');
}

fn chain(tree: &Tree, kids: Kids, text: &mut String, operator: &str, depth: usize) {
    text.push('(');
    for (position, kid) in tree.kids(kids).iter().enumerate() {
        if position > 0 {
            text.push_str(operator);
        }
        if position == ELEMENTS_MAX {
            text.push_str("...");
            break;
        }
        write_expression(tree, *kid, text, depth);
    }
    text.push(')');
}

fn binary(tree: &Tree, op: Binary, left: ExprId, right: ExprId, text: &mut String, depth: usize) {
    let infix = match op {
        Binary::Eq => " == ",
        Binary::Less => " < ",
        Binary::LessEq => " <= ",
        Binary::Add => " + ",
        Binary::Sub => " - ",
        Binary::Mul => " * ",
        Binary::In => " in ",
        Binary::Contains => ".contains(",
        Binary::ContainsAll => ".containsAll(",
        Binary::ContainsAny => ".containsAny(",
        Binary::GetTag => ".getTag(",
        Binary::HasTag => ".hasTag(",
    };
    write_expression(tree, left, text, depth);
    text.push_str(infix);
    write_expression(tree, right, text, depth);
    if infix.ends_with('(') {
        text.push(')');
    }
}

fn call(tree: &Tree, function: ExtFn, kids: Kids, text: &mut String, depth: usize) {
    let mut args = tree.kids(kids).iter();
    if function.is_method()
        && let Some(subject) = args.next()
    {
        write_expression(tree, *subject, text, depth);
        text.push('.');
    }
    text.push_str(function.name());
    text.push('(');
    list(text, args, |text, arg| write_expression(tree, *arg, text, depth));
    text.push(')');
}
