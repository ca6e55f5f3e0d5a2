//! The front door: limits checked by one linear scan before any parser sees a document.
//!
//! The reference parser recurses once per bracket and kills the process when the stack ends, and parts of it are
//! quadratic (measured numbers stand beside the bounds in [`crate::limits`]). So every document passes here first.
//! The scan knows the tokens of the language (strings with escapes, comments, brackets, words, operators) and not its
//! grammar. It refuses what exceeds a bound, and what no grammar over these tokens could accept: brackets that do not
//! match, strings that do not end, escapes that do not exist. It refuses nothing else: everything the reference
//! accepts within the limits passes, which the conformance corpus and the fuzz target `policy_text` check.
//!
//! The token rules are those of the lexers in `cedar-policy-core/src/parser/grammar.lalrpop` and
//! `src/validator/cedar_schema/grammar.lalrpop`; the escapes are Rust's (`rustc-literal-escaper`) plus `\*`.

use super::error::PolicyError;
use super::parse::Source;
use crate::limits;

/// What the scan has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scan {
    /// Statements ended by `;`: policies and templates in policy text.
    pub policies: usize,
    /// Tokens of the document.
    pub tokens: usize,
    /// Tokens of the longest statement.
    pub tokens_max: usize,
    /// Most brackets open at once.
    pub nesting_max: usize,
}

/// Checks policy text. Costs one pass over the bytes and no allocation beyond the open brackets.
pub fn check(source: &Source<'_>) -> Result<Scan, PolicyError> {
    Scanner::new(source, &POLICY).scan()
}

/// Checks schema text in the Cedar syntax.
pub fn check_schema(source: &Source<'_>) -> Result<Scan, PolicyError> {
    Scanner::new(source, &SCHEMA).scan()
}

/// A kind of JSON document, for the codes of its errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// A list of entities.
    Entities,
    /// The context of one request.
    Context,
    /// A schema in its JSON form.
    Schema,
}

/// Checks the size and nesting of a JSON document; everything else is left to the JSON reader, which has positions.
pub fn check_json(
    document: Document,
    source: &Source<'_>,
    bytes_max: usize,
    depth_max: usize,
) -> Result<(), PolicyError> {
    let (what, too_large, too_deep) = match document {
        Document::Entities => ("entities", "entities.too_large", "entities.too_deep"),
        Document::Context => ("context", "context.too_large", "context.too_deep"),
        Document::Schema => ("schema", "schema.too_large", "schema.too_deep"),
    };
    let bytes = source.text.as_bytes();
    if bytes.len() > bytes_max {
        let message = format!("{what} document of {} bytes exceeds limit {bytes_max}", bytes.len());
        return Err(PolicyError::new(too_large, message).in_file(source.name).help("split the document"));
    }
    let (mut depth, mut deepest, mut offending, mut at) = (0_usize, 0_usize, None, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = json_string_end(bytes, at),
            b'[' | b'{' => {
                depth = next(depth);
                deepest = deepest.max(depth);
                if depth > depth_max {
                    offending.get_or_insert(at);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at = next(at);
    }
    offending.map_or(Ok(()), |at| {
        let message = format!("{what} nesting {deepest} exceeds limit {depth_max}");
        Err(PolicyError::new(too_deep, message).at(source.name, source.text, at).help("flatten the document"))
    })
}

/// Offset of the quote that ends the string opened at `at`, or of the last byte.
fn json_string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = next(at);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at = at.saturating_add(2),
            _ => at = next(at),
        }
    }
    bytes.len()
}

/// The bounds and codes of one language.
struct Rules {
    what: &'static str,
    too_large: &'static str,
    too_deep: &'static str,
    too_many: &'static str,
    syntax: &'static str,
    bytes_max: usize,
    nesting_max: usize,
    statements_max: usize,
    tokens_max: usize,
    /// Commas directly inside one `{`.
    fields_max: usize,
    /// `<` and `>` are brackets (`Set<Long>`), and `;` may stand inside brackets.
    schema: bool,
}

const POLICY: Rules = Rules {
    what: "policy",
    too_large: "policy.too_large",
    too_deep: "policy.too_deep",
    too_many: "policy.too_many",
    syntax: "policy.syntax",
    bytes_max: limits::POLICY_FILE_BYTES_MAX,
    nesting_max: limits::POLICY_NESTING_MAX,
    statements_max: limits::POLICY_FILE_POLICIES_MAX,
    tokens_max: limits::POLICY_TOKENS_MAX,
    fields_max: usize::MAX,
    schema: false,
};

const SCHEMA: Rules = Rules {
    what: "schema",
    too_large: "schema.too_large",
    too_deep: "schema.too_deep",
    too_many: "schema.too_many",
    syntax: "schema.syntax",
    bytes_max: limits::SCHEMA_BYTES_MAX,
    nesting_max: limits::POLICY_NESTING_MAX,
    statements_max: usize::MAX,
    tokens_max: usize::MAX,
    fields_max: limits::SCHEMA_RECORD_FIELDS_MAX,
    schema: true,
};

/// One token's share in the rules that look at neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Like,
    Unary(u8),
    Other,
}

struct Open {
    bracket: u8,
    at: usize,
    commas: usize,
}

struct Scanner<'a> {
    source: &'a Source<'a>,
    bytes: &'a [u8],
    rules: &'a Rules,
    open: Vec<Open>,
    scan: Scan,
    /// The first bracket beyond the limit. Scanning goes on, so that the error can name the actual depth.
    too_deep_at: Option<usize>,
    statement_at: Option<usize>,
    statement_tokens: usize,
    statement_ifs: usize,
    last: Last,
    unary_run: usize,
}

impl<'a> Scanner<'a> {
    fn new(source: &'a Source<'a>, rules: &'a Rules) -> Self {
        Self {
            source,
            bytes: source.text.as_bytes(),
            rules,
            open: Vec::new(),
            scan: Scan::default(),
            too_deep_at: None,
            statement_at: None,
            statement_tokens: 0,
            statement_ifs: 0,
            last: Last::Other,
            unary_run: 0,
        }
    }

    fn scan(mut self) -> Result<Scan, PolicyError> {
        let (length, limit) = (self.bytes.len(), self.rules.bytes_max);
        if length > limit {
            let message = format!("{} file of {length} bytes exceeds limit {limit}", self.rules.what);
            let error = PolicyError::new(self.rules.too_large, message).in_file(self.source.name);
            return Err(error.help("split the file"));
        }
        let result = self.tokens();
        // The depth goes first: what follows a bracket bomb is rarely worth reading.
        if let Some(at) = self.too_deep_at {
            let (depth, limit) = (self.scan.nesting_max, self.rules.nesting_max);
            let message = format!("{} nesting {depth} exceeds limit {limit}", self.rules.what);
            return Err(self.error(self.rules.too_deep, &message, at).help("split the condition into several clauses"));
        }
        result.map(|()| self.scan)
    }

    fn tokens(&mut self) -> Result<(), PolicyError> {
        let mut at = 0;
        while let Some(&byte) = self.bytes.get(at) {
            let after = next(at);
            at = match byte {
                b' ' | b'\t' | b'\n' | b'\r' | 0x80.. => after,
                b'/' if self.bytes.get(after) == Some(&b'/') => self.comment_end(after),
                b'"' => self.string(at)?,
                b'_' | b'a'..=b'z' | b'A'..=b'Z' => self.word(at)?,
                b'?' if !self.rules.schema => self.slot(at),
                b'0'..=b'9' => {
                    self.token(at, Last::Other);
                    self.run_end(after, |byte| byte.is_ascii_digit())
                }
                _ => self.punctuation(byte, at)?,
            };
        }
        if let Some(open) = self.open.last() {
            let message = format!("`{}` is never closed", char::from(open.bracket));
            return Err(self.error(self.rules.syntax, &message, open.at));
        }
        self.statement_end()
    }

    /// Counts a token that starts at `at`.
    fn token(&mut self, at: usize, last: Last) {
        self.statement_at.get_or_insert(at);
        self.statement_tokens = next(self.statement_tokens);
        self.scan.tokens = next(self.scan.tokens);
        self.last = last;
    }

    fn run_end(&self, from: usize, belongs: impl Fn(u8) -> bool) -> usize {
        let rest = self.bytes.get(from..).unwrap_or_default();
        from.saturating_add(rest.iter().position(|&byte| !belongs(byte)).unwrap_or(rest.len()))
    }

    fn comment_end(&self, from: usize) -> usize {
        let rest = self.bytes.get(from..).unwrap_or_default();
        from.saturating_add(memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len()))
    }

    fn word(&mut self, at: usize) -> Result<usize, PolicyError> {
        let end = self.run_end(at, |byte| byte == b'_' || byte.is_ascii_alphanumeric());
        let word = self.bytes.get(at..end).unwrap_or_default();
        self.token(at, if word == b"like" { Last::Like } else { Last::Other });
        if word == b"if" && !self.rules.schema {
            self.statement_ifs = next(self.statement_ifs);
            if self.statement_ifs > limits::POLICY_IFS_MAX {
                let message = format!("a policy with more than {} `if` exceeds the limit", limits::POLICY_IFS_MAX);
                let error = self.error(self.rules.too_deep, &message, at);
                return Err(error.help("`else if` nests; use several policies or a set with `contains`"));
            }
        }
        Ok(end)
    }

    /// `?principal` and the like are one token; a lone `?` is left to the parser.
    fn slot(&mut self, at: usize) -> usize {
        self.token(at, Last::Other);
        self.run_end(next(at), |byte| byte == b'_' || byte.is_ascii_alphanumeric())
    }

    fn punctuation(&mut self, byte: u8, at: usize) -> Result<usize, PolicyError> {
        let after = next(at);
        if self.is_pair(byte, self.bytes.get(after).copied()) {
            self.token(at, Last::Other);
            return Ok(next(after));
        }
        match byte {
            b'!' | b'-' if !self.rules.schema => return self.unary(byte, at),
            _ => self.token(at, Last::Other),
        }
        match byte {
            b'(' | b'[' | b'{' => self.opened(byte, at),
            b'<' if self.rules.schema => self.opened(byte, at),
            b')' | b']' | b'}' => self.closed(byte, at)?,
            b'>' if self.rules.schema => self.closed(byte, at)?,
            b',' => self.comma(at)?,
            b';' => self.semicolon(at)?,
            _ => {}
        }
        Ok(after)
    }

    /// Whether two bytes are one operator.
    fn is_pair(&self, first: u8, second: Option<u8>) -> bool {
        let Some(second) = second else { return false };
        match (first, second) {
            (b':', b':') => true,
            (b'=' | b'!' | b'<' | b'>', b'=') | (b'&', b'&') | (b'|', b'|') => !self.rules.schema,
            _ => false,
        }
    }

    fn unary(&mut self, byte: u8, at: usize) -> Result<usize, PolicyError> {
        self.unary_run = if self.last == Last::Unary(byte) { next(self.unary_run) } else { 1 };
        self.token(at, Last::Unary(byte));
        if self.unary_run > limits::POLICY_UNARY_RUN_MAX {
            let limit = limits::POLICY_UNARY_RUN_MAX;
            let message = format!("a run of more than {limit} `{}` exceeds the limit", char::from(byte));
            return Err(self.error(self.rules.syntax, &message, at).help("remove pairs of them"));
        }
        Ok(next(at))
    }

    fn opened(&mut self, bracket: u8, at: usize) {
        self.open.push(Open { bracket, at, commas: 0 });
        self.scan.nesting_max = self.scan.nesting_max.max(self.open.len());
        if self.open.len() > self.rules.nesting_max {
            self.too_deep_at.get_or_insert(at);
        }
    }

    fn closed(&mut self, bracket: u8, at: usize) -> Result<(), PolicyError> {
        let expected = match bracket {
            b')' => b'(',
            b']' => b'[',
            b'}' => b'{',
            _ => b'<',
        };
        let message = match self.open.pop() {
            Some(open) if open.bracket == expected => return Ok(()),
            Some(open) => {
                let (line, column) = super::error::position(self.source.text, open.at);
                let (open, close) = (char::from(open.bracket), char::from(bracket));
                format!("`{open}` of line {line}, column {column} is closed by `{close}`")
            }
            None => format!("`{}` closes nothing", char::from(bracket)),
        };
        Err(self.error(self.rules.syntax, &message, at))
    }

    fn comma(&mut self, at: usize) -> Result<(), PolicyError> {
        let Some(open) = self.open.last_mut() else { return Ok(()) };
        open.commas = next(open.commas);
        if open.bracket == b'{' && open.commas > self.rules.fields_max {
            let message = format!("a record with more than {} fields exceeds the limit", self.rules.fields_max);
            return Err(self.error(self.rules.too_many, &message, at).help("use tags or nested records"));
        }
        Ok(())
    }

    fn semicolon(&mut self, at: usize) -> Result<(), PolicyError> {
        match self.open.last() {
            Some(_) if self.rules.schema => {}
            Some(open) => {
                let message = format!("`{}` is not closed before `;`", char::from(open.bracket));
                return Err(self.error(self.rules.syntax, &message, open.at));
            }
            None => {}
        }
        self.scan.policies = next(self.scan.policies);
        let limit = self.rules.statements_max;
        if self.scan.policies > limit {
            let message = format!("more than {limit} policies in one file exceed the limit");
            return Err(self.error(self.rules.too_many, &message, at).help("split the file"));
        }
        self.statement_end()
    }

    fn statement_end(&mut self) -> Result<(), PolicyError> {
        let tokens = std::mem::take(&mut self.statement_tokens);
        let at = self.statement_at.take().unwrap_or_default();
        self.statement_ifs = 0;
        self.scan.tokens_max = self.scan.tokens_max.max(tokens);
        if tokens > self.rules.tokens_max {
            let message = format!("a policy of {tokens} tokens exceeds limit {}", self.rules.tokens_max);
            let help = "split the policy, or keep long lists as entities and test them with `in`";
            return Err(self.error(self.rules.too_large, &message, at).help(help));
        }
        Ok(())
    }

    /// Checks the string literal opened at `quote`; returns the offset behind its closing quote.
    fn string(&mut self, quote: usize) -> Result<usize, PolicyError> {
        let pattern = self.last == Last::Like;
        self.token(quote, Last::Other);
        let (mut at, mut stars) = (next(quote), 0_usize);
        loop {
            let rest = self.bytes.get(at..).unwrap_or_default();
            let Some(skip) = memchr::memchr3(b'"', b'\\', b'\r', rest) else {
                return Err(self.error(self.rules.syntax, "string is never closed", quote));
            };
            at = at.saturating_add(skip);
            match self.bytes.get(at) {
                Some(b'"') => return Ok(next(at)),
                Some(b'\\') => {}
                _ => {
                    let error = self.error(self.rules.syntax, "carriage return inside a string", at);
                    return Err(error.help("write `\\r`, or save the file with `\\n` line ends"));
                }
            }
            let Some(length) = escape_length(self.bytes.get(next(at)..).unwrap_or_default()) else {
                let error = self.error(self.rules.syntax, "string has an escape that does not exist", at);
                return Err(error.help(r#"escapes are \n \r \t \\ \0 \' \" \xNN (up to 7F) \u{N}, and \* after like"#));
            };
            if self.bytes.get(next(at)) == Some(&b'*') && !pattern {
                stars = next(stars);
            }
            if stars > limits::LITERAL_STAR_ESCAPES_MAX {
                let limit = limits::LITERAL_STAR_ESCAPES_MAX;
                let message = format!("a string with more than {limit} `\\*` exceeds the limit");
                return Err(self.error(self.rules.syntax, &message, at).help("`\\*` belongs directly after `like`"));
            }
            at = next(at).saturating_add(length);
        }
    }

    fn error(&self, code: &'static str, message: &str, at: usize) -> PolicyError {
        PolicyError::new(code, message).at(self.source.name, self.source.text, at)
    }
}

/// Length of the escape that starts behind a backslash; `None` if there is no such escape.
fn escape_length(rest: &[u8]) -> Option<usize> {
    match rest {
        [b'n' | b'r' | b't' | b'\\' | b'0' | b'\'' | b'"' | b'*', ..] => Some(1),
        [b'x', high, low, ..] => (matches!(high, b'0'..=b'7') && low.is_ascii_hexdigit()).then_some(3),
        [b'u', b'{', tail @ ..] => {
            // Six digits at most, but any number of underscores after the first digit, so the length has no bound.
            let (mut value, mut digits) = (0_u32, 0_usize);
            for (index, &byte) in tail.iter().enumerate() {
                match char::from(byte).to_digit(16) {
                    Some(digit) if digits < 6 => {
                        value = value.wrapping_shl(4) | digit;
                        digits = next(digits);
                    }
                    None if byte == b'_' && digits > 0 => {}
                    None if byte == b'}' && digits > 0 => {
                        return char::from_u32(value).map(|_| index.saturating_add(3));
                    }
                    _ => return None,
                }
            }
            None
        }
        _ => None,
    }
}

fn next(n: usize) -> usize {
    n.saturating_add(1)
}

/// Tokens of a policy text that has passed [`check`] before.
pub(crate) fn tokens(text: &str) -> usize {
    let scan = Scanner::new(&Source::unnamed(text), &POLICY).scan();
    scan.map_or(limits::POLICY_TOKENS_MAX, |scan| scan.tokens)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, reason = "the slow model counts plainly")]

    use super::*;
    use proptest::prelude::*;

    fn scan(text: &str) -> Result<Scan, PolicyError> {
        check(&Source { name: Some("p.cedar"), text })
    }

    fn code(text: &str) -> &'static str {
        scan(text).map_or_else(|error| error.code, |_| "ok")
    }

    #[test]
    fn counts_policies_tokens_and_brackets() {
        let found =
            scan("// a ( comment\r permit(principal, action, resource) when { [(1)] == \"};\\\"\" };\n").unwrap();
        assert_eq!(found, Scan { policies: 1, tokens: 19, tokens_max: 19, nesting_max: 3 });
        assert_eq!(scan("a::b!=c<=d&&?principal 12ab;x;").unwrap().tokens_max, 12);
        assert_eq!(scan("").unwrap(), Scan::default());
    }

    #[test]
    fn the_deepest_bracket_is_counted_and_the_first_one_too_deep_is_shown() {
        let at = |depth: usize| format!("x\n{}{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(code(&at(64)), "ok");
        let error = scan(&at(70)).unwrap_err();
        assert_eq!((error.code, error.line, error.column), ("policy.too_deep", 2, 65));
        assert_eq!(error.message, "policy nesting 70 exceeds limit 64");
    }

    #[test]
    fn brackets_and_strings_that_no_grammar_accepts() {
        let cases = [
            ("permit(;", "`(` is not closed before `;`", 7),
            ("a [ (\n ]", "`(` of line 1, column 5 is closed by `]`", 2),
            (" )", "`)` closes nothing", 2),
            ("a {", "`{` is never closed", 3),
            ("a \"b\\\"", "string is never closed", 3),
            ("\"\\q\"", "string has an escape that does not exist", 2),
            ("\"\r\"", "carriage return inside a string", 2),
        ];
        for (text, message, column) in cases {
            let error = scan(text).unwrap_err();
            assert_eq!(
                (error.code, error.message.as_str(), error.column),
                ("policy.syntax", message, column),
                "{text}"
            );
        }
    }

    #[test]
    fn escapes_are_those_of_the_language() {
        for good in [r"\n\r\t\\\0\'\*", r#"\""#, r"\x7f\x00", r"\u{0}", r"\u{10fFfF}", r"\u{1_}", r"\u{1__2}"] {
            assert_eq!(code(&format!("\"{good}\"")), "ok", "{good}");
        }
        for bad in
            ["\\", r"\x8f", r"\x7", r"\u", r"\u{}", r"\u{_1}", r"\u{110000}", r"\u{d800}", r"\u{0000001}", "\\\n"]
        {
            assert_eq!(code(&format!("\"{bad}\"")), "policy.syntax", "{bad}");
        }
        let stars = r"\*".repeat(17);
        assert_eq!(code(&format!("like \"{stars}\"")), "ok");
        assert_eq!(code(&format!("== \"{stars}\"")), "policy.syntax");
    }

    #[test]
    fn one_statement_is_bounded() {
        assert_eq!(code(&"a ".repeat(20_000)), "ok");
        assert_eq!(code(&"a ".repeat(20_001)), "policy.too_large");
        assert_eq!(code(&"a;".repeat(20_001)), "ok");
        assert_eq!(code(&"if ".repeat(257)), "policy.too_deep");
        assert_eq!(code(&"if;".repeat(257)), "ok");
        assert_eq!(code(&"! ".repeat(9)), "policy.syntax");
        assert_eq!(code(&"!-".repeat(9)), "ok", "left to the parser");
        assert_eq!(code(&";".repeat(31_000)), "policy.too_many");
        assert_eq!(code(&" ".repeat((1 << 20) + 1)), "policy.too_large");
    }

    #[test]
    fn schema_counts_angle_brackets_and_fields() {
        let schema = |text: &str| check_schema(&Source::unnamed(text)).map_or_else(|error| error.code, |_| "ok");
        assert_eq!(schema("namespace N { entity U { a: Set<Long> }; }"), "ok");
        assert_eq!(schema(&format!("type T = {}Long{};", "Set<".repeat(65), ">".repeat(65))), "schema.too_deep");
        assert_eq!(schema(&format!("entity U {{ {} }};", "a: Long,".repeat(1_001))), "schema.too_many");
        assert_eq!(schema(&format!("entity U enum [{}\"z\"];", "\"a\",".repeat(9_000))), "ok");
    }

    #[test]
    fn json_is_bounded_in_size_and_depth() {
        let json = |text: &str, bytes_max, depth_max| {
            let result = check_json(Document::Entities, &Source::unnamed(text), bytes_max, depth_max);
            result.map_or_else(|error| error.code, |()| "ok")
        };
        assert_eq!(json("[[\"[[\\\"[[\"]]", 99, 2), "ok");
        assert_eq!(json("[[[]]]", 99, 2), "entities.too_deep");
        assert_eq!(json("[]", 1, 2), "entities.too_large");
        assert_eq!(json("\"\\", 99, 2), "ok", "left to the JSON reader");
    }

    /// What the scan should find, by a machine over characters that peels tokens off the front: slow, and shares no
    /// code with the scan. `None` where the scan must refuse.
    fn model(text: &str) -> Option<Scan> {
        let mut chars: Vec<char> = text.chars().rev().collect();
        let (mut found, mut open, mut tokens, mut word) = (Scan::default(), String::new(), 0, String::new());
        let mut runs: Vec<char> = Vec::new();
        while let Some(c) = chars.pop() {
            let ahead = chars.last().copied().unwrap_or(' ');
            let pair: String = [c, ahead].iter().collect();
            let previous = std::mem::take(&mut word);
            if pair == "//" {
                while chars.pop().is_some_and(|c| c != '\n' && c != '\r') {}
                word = previous;
                continue;
            }
            if c.is_whitespace() || !c.is_ascii() {
                word = previous;
                continue;
            }
            tokens += 1;
            found.tokens += 1;
            if "!-".contains(c) && pair != "!=" {
                runs.retain(|&run| run == c);
                runs.push(c);
                if runs.len() > 8 {
                    return None;
                }
                continue;
            }
            runs.clear();
            match c {
                '"' => {
                    let mut stars = 0;
                    loop {
                        match chars.pop()? {
                            '"' => break,
                            '\r' => return None,
                            // The soup below has no \x or \u; their own test is above.
                            '\\' => match chars.pop()? {
                                '*' => stars += usize::from(previous != "like"),
                                'n' | 'r' | 't' | '0' | '\\' | '\'' | '"' => {}
                                _ => return None,
                            },
                            _ => {}
                        }
                    }
                    if stars > 16 {
                        return None;
                    }
                }
                '?' | 'a'..='z' | 'A'..='Z' | '_' => {
                    word.push(c);
                    while chars.last().is_some_and(|&c| c.is_ascii_alphanumeric() || c == '_') {
                        word.push(chars.pop()?);
                    }
                }
                '0'..='9' => {
                    while chars.last().is_some_and(char::is_ascii_digit) {
                        chars.pop();
                    }
                }
                _ if ["::", "==", "!=", "<=", ">=", "&&", "||"].contains(&pair.as_str()) => {
                    chars.pop();
                }
                '(' | '[' | '{' => open.push(c),
                ')' | ']' | '}' => {
                    let wanted = match c {
                        ')' => '(',
                        ']' => '[',
                        _ => '{',
                    };
                    if open.pop() != Some(wanted) {
                        return None;
                    }
                }
                ';' if !open.is_empty() => return None,
                ';' => {
                    found.policies += 1;
                    found.tokens_max = found.tokens_max.max(tokens);
                    tokens = 0;
                }
                _ => {}
            }
            found.nesting_max = found.nesting_max.max(open.len());
        }
        found.tokens_max = found.tokens_max.max(tokens);
        open.is_empty().then_some(found)
    }

    fn soup() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            ";",
            "\"a\"",
            "\"\\\"",
            "\"",
            "\\*",
            "\\n",
            "\\",
            "//",
            "/",
            "\n",
            "\r",
            " ",
            "!",
            "-",
            "!=",
            "==",
            "=",
            "::",
            ":",
            "<",
            "<=",
            ">",
            "&&",
            "&",
            "||",
            "like ",
            "like \"\\*\"",
            "if",
            "é",
            "\u{2003}",
            "?principal",
            "?",
            "07ab",
            "9",
            "_x1",
            "\0",
            "@",
            ".",
            ",",
            "when {",
            "} ;",
            "\"};//\"",
        ]);
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn agrees_with_a_slow_model(text in soup()) {
            prop_assert_eq!(scan(&text).ok(), model(&text), "{:?}", text);
        }

        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = scan(&text);
            let _ = check_schema(&Source::unnamed(&text));
            let _ = check_json(Document::Context, &Source::unnamed(&text), 1 << 20, 3);
        }
    }
}
