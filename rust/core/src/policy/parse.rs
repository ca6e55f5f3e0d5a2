//! From text to the reference's parsed policies and schema: the only place that feeds text to the reference parser.
//!
//! The reference (`cedar-policy`) parses and validates, so that the language cannot drift; this file makes that safe.
//! Text passes [`super::front`] first, and everything the reference builds is made and dropped on a thread whose stack
//! is known ([`on_parser_thread`]): an operator chain is a left-nested tree there, which validation, printing and
//! dropping walk recursively. This file refuses to run the parser on any other stack, and to show more than
//! [`super::error::ERRORS_MAX`] errors. It does not decide anything and keeps nothing.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr as _;
use std::thread;

use cedar_policy::{ActionConstraint, EntityUid, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use miette::Diagnostic;

use super::error::{ERRORS_MAX, PolicyError, PolicyErrors};
use super::front::{self, Document};
use crate::limits;

/// A document and the name it goes by in errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    /// Usually a path relative to the configuration; `None` for text that came without one.
    pub name: Option<&'a str>,
    /// The text.
    pub text: &'a str,
}

impl<'a> Source<'a> {
    /// Text without a name.
    pub fn unnamed(text: &'a str) -> Self {
        Self { name: None, text }
    }
}

thread_local! {
    static ON_PARSER_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a thread with [`limits::PARSER_STACK_BYTES`] of stack and returns what it returns. Values of the
/// reference's syntax tree must not be part of the result: dropping one recurses. Nested calls stay on the thread.
///
/// # Errors
/// `internal.panic` if `work` panicked, `internal.thread` if the system refused the thread.
///
/// # Concurrency
/// Blocks the caller until the work is done; never called while deciding.
pub fn on_parser_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, PolicyError> {
    if ON_PARSER_THREAD.get() {
        return Ok(work());
    }
    thread::scope(|scope| {
        let body = || {
            ON_PARSER_THREAD.set(true);
            // Caught here and not by `join`, so that the unwinding ends on the large stack.
            catch_unwind(AssertUnwindSafe(work)).map_err(drop)
        };
        let builder = thread::Builder::new().name("tollkeeper-parser".into()).stack_size(limits::PARSER_STACK_BYTES);
        let handle = builder.spawn_scoped(scope, body).map_err(|error| {
            let stack = limits::PARSER_STACK_BYTES;
            PolicyError::new("internal.thread", format!("no thread with a stack of {stack} bytes: {}", error.kind()))
                .help("raise the limits on threads and address space")
        })?;
        handle.join().ok().and_then(Result::ok).ok_or_else(|| {
            PolicyError::new("internal.panic", "internal error while reading a document; nothing was loaded")
                .help("report the document that caused it")
        })
    })
}

/// Checks that bytes are UTF-8.
pub fn decode<'a>(bytes: &'a [u8], name: Option<&str>) -> Result<&'a str, PolicyError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let valid = bytes.get(..at).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default();
        let byte = bytes.get(at).copied().unwrap_or_default();
        PolicyError::new("policy.encoding", format!("byte 0x{byte:02x} at offset {at} is not UTF-8"))
            .at(name, valid, at)
            .help("save the file as UTF-8")
    })
}

/// Parses policies and templates; ids are positional (`policy0`, `policy1`, ...) as in the reference.
///
/// # Errors
/// Also `internal.thread` if called outside [`on_parser_thread`], where the result could not be dropped safely.
pub fn parse_policies(source: &Source<'_>) -> Result<PolicySet, PolicyErrors> {
    if !ON_PARSER_THREAD.get() {
        return Err(PolicyError::new("internal.thread", "policies are parsed on the parser thread only").into());
    }
    front::check(source)?;
    PolicySet::from_str(source.text).map_err(|errors| {
        // Recovered errors come in the order the parser gave up in; a reader starts at the top of the file.
        let mut all: Vec<_> = errors.iter().map(|error| (offset_of(error), error)).collect();
        all.sort_by_key(|(offset, _)| *offset);
        let omitted = all.len().saturating_sub(ERRORS_MAX);
        let kept = all.iter().take(ERRORS_MAX).map(|(_, error)| explain("policy.syntax", source, *error));
        PolicyErrors::from_parts(kept, omitted).unwrap_or_else(|| PolicyError::new("policy.syntax", "no policy").into())
    })
}

/// Parses a schema in the Cedar syntax, or in JSON if the first character is `{`.
pub fn parse_schema(source: &Source<'_>) -> Result<Schema, PolicyErrors> {
    let json = source.text.trim_start().starts_with('{');
    if json {
        front::check_json(Document::Schema, source, limits::SCHEMA_BYTES_MAX, limits::POLICY_NESTING_MAX)?;
    } else {
        front::check_schema(source)?;
    }
    on_parser_thread(|| {
        super::schema_bounds::check(source, json)?;
        if json {
            Schema::from_json_str(source.text).map_err(|error| explain_all("schema.syntax", source, &error))
        } else {
            // Warnings are about names that shadow built-in types; the reference resolves them, and so do we.
            let parsed = Schema::from_cedarschema_str(source.text);
            parsed.map(|(schema, _warnings)| schema).map_err(|error| explain_all("schema.syntax", source, &error))
        }
    })?
}

/// Validates strictly; returns the warnings, at most [`ERRORS_MAX`].
pub fn validate(policies: &PolicySet, schema: &Schema) -> Result<Vec<PolicyError>, PolicyErrors> {
    validate_named(policies, schema, |_| None)
}

/// [`validate`] with the name of the document that each policy came from, for the errors.
pub fn validate_named<'n>(
    policies: &PolicySet,
    schema: &Schema,
    name_of: impl Fn(&PolicyId) -> Option<&'n str> + Sync,
) -> Result<Vec<PolicyError>, PolicyErrors> {
    on_parser_thread(|| {
        check_validation_work(policies, schema)?;
        let result = Validator::new(schema.clone()).validate(policies, ValidationMode::Strict);
        let explain = |id: &PolicyId, diagnostic: &dyn Diagnostic| {
            let text = text_of(policies, id);
            let source = Source { name: name_of(id), text: text.as_deref().unwrap_or_default() };
            let mut error = explain("policy.invalid", &source, diagnostic);
            // The reference's positional name; the place says which policy it is, whatever it is called here.
            if policies.policy(id).is_some_and(|policy| policy.template_id().is_none())
                && let Some(rest) = error.message.strip_prefix(&format!("for policy `{id}`, "))
            {
                error.message = rest.to_owned();
            }
            error
        };
        let omitted = result.validation_errors().count().saturating_sub(ERRORS_MAX);
        let errors = result.validation_errors().take(ERRORS_MAX).map(|error| explain(error.policy_id(), error));
        if let Some(errors) = PolicyErrors::from_parts(errors, omitted) {
            return Err(errors);
        }
        let warnings = result.validation_warnings().take(ERRORS_MAX);
        Ok(warnings.map(|warning| explain(warning.policy_id(), warning)).collect())
    })?
}

/// The whole text that a policy was parsed from: positions in validation errors are offsets into it.
fn text_of(policies: &PolicySet, id: &PolicyId) -> Option<std::sync::Arc<str>> {
    let of_template = || {
        let template: &cedar_policy_core::ast::Template = policies.template(id)?.as_ref();
        template.loc().map(|loc| loc.src.clone())
    };
    let of_policy = || {
        let policy: &cedar_policy_core::ast::Policy = policies.policy(id)?.as_ref();
        policy.template().loc().map(|loc| loc.src.clone())
    };
    of_policy().or_else(of_template)
}

/// The validator checks every policy against every combination of principal type, action and resource type that its
/// scope admits, and is quadratic in the length of a policy; the product is bounded before it starts.
fn check_validation_work(policies: &PolicySet, schema: &Schema) -> Result<(), PolicyError> {
    let mut by_action: HashMap<EntityUid, u64> = HashMap::new();
    let mut environments = 0_u64;
    for environment in schema.request_envs() {
        environments = environments.saturating_add(1);
        let count = by_action.entry(environment.action().clone()).or_default();
        *count = count.saturating_add(1);
        if environments > limits::VALIDATION_WORK_MAX {
            break;
        }
    }
    let cost = |text: String, action: &ActionConstraint| {
        let tokens = u64::try_from(front::tokens(&text)).unwrap_or(u64::MAX);
        let admitted = match action {
            ActionConstraint::Eq(uid) => by_action.get(uid).copied().unwrap_or_default(),
            _ => environments,
        };
        let each = tokens.saturating_mul(tokens.saturating_add(limits::VALIDATION_WORK_PER_TOKEN));
        let skipped = environments.saturating_mul(limits::VALIDATION_WORK_PER_ENVIRONMENT);
        admitted.saturating_mul(each).saturating_add(skipped)
    };
    let of_policies = policies.policies().map(|p| cost(p.to_cedar().unwrap_or_default(), &p.action_constraint()));
    let of_templates = policies.templates().map(|t| cost(t.to_cedar(), &t.action_constraint()));
    let work = of_policies.chain(of_templates).fold(0, u64::saturating_add);
    if work > limits::VALIDATION_WORK_MAX {
        let limit = limits::VALIDATION_WORK_MAX;
        let message = format!("validation work of {work} units ({environments} request types) exceeds limit {limit}");
        let help = "name the action in the scope, shorten the policies or split the set";
        return Err(PolicyError::new("policy.too_large", message).help(help));
    }
    Ok(())
}

fn offset_of(diagnostic: &dyn Diagnostic) -> Option<usize> {
    diagnostic.labels()?.map(|label| label.offset()).min()
}

/// One error of the reference in our words: its message, its position, its help or what it expected.
pub(crate) fn explain(code: &'static str, source: &Source<'_>, diagnostic: &dyn Diagnostic) -> PolicyError {
    let error = PolicyError::new(code, diagnostic.to_string());
    let label = diagnostic.labels().and_then(|labels| labels.min_by_key(miette::LabeledSpan::offset));
    let error = match &label {
        Some(label) => error.at(source.name, source.text, label.offset()),
        None => error.in_file(source.name),
    };
    let help = diagnostic.help().map(|help| help.to_string());
    match help.or_else(|| label.and_then(|label| label.label().map(str::to_owned))) {
        Some(help) => error.help(help),
        None => error,
    }
}

/// The same for an error that carries further ones.
pub(crate) fn explain_all(code: &'static str, source: &Source<'_>, diagnostic: &dyn Diagnostic) -> PolicyErrors {
    let mut errors = PolicyErrors::from(explain(code, source, diagnostic));
    for related in diagnostic.related().into_iter().flatten() {
        errors.push(explain(code, source, related));
    }
    errors
}

#[cfg(test)]
mod tests {
    #![expect(clippy::format_collect, reason = "generated documents are small and built once")]

    use super::*;

    fn refusal(text: &str) -> PolicyErrors {
        let source = Source { name: Some("p.cedar"), text };
        on_parser_thread(|| parse_policies(&source).map(drop)).unwrap().unwrap_err()
    }

    #[test]
    fn policies_are_parsed_on_the_parser_thread_only() {
        let error = parse_policies(&Source::unnamed("")).unwrap_err();
        assert_eq!(error.first().code, "internal.thread");
        let count = on_parser_thread(|| {
            // A nested call stays on the thread.
            on_parser_thread(|| parse_policies(&Source::unnamed("permit(principal,action,resource);")).unwrap())
                .map(|set| set.policies().count())
        });
        assert_eq!(count.unwrap().unwrap(), 1);
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let result: Result<(), _> = on_parser_thread(|| panic!("not shown to the caller"));
        assert_eq!(result.unwrap_err().code, "internal.panic");
        assert!(on_parser_thread(|| 1).is_ok(), "the next call is not harmed");
    }

    #[test]
    fn syntax_errors_have_position_excerpt_and_help_in_file_order() {
        let errors =
            refusal("permit(principal, action, resource)\nwhen { foo };\npermit(principal, action, resource);\n+ ;");
        let shown = errors.first().to_string();
        assert!(shown.starts_with("p.cedar:4:1: unexpected token `+`\n  + ;\nhelp: expected"), "{shown}");
        let errors = refusal("permit(principal, action, resource)\nwhen { foo };");
        let shown = errors.first().to_string();
        assert!(shown.starts_with("p.cedar:2:8: invalid variable: foo\n  when { foo };\nhelp: "), "{shown}");
    }

    #[test]
    fn many_errors_are_capped() {
        let errors = refusal(&"permit(principal,action,resource)when{foo};".repeat(1_000));
        assert_eq!((errors.iter().count(), errors.count()), (ERRORS_MAX, 1_000));
        assert_eq!(errors.first().column, 39);
    }

    #[test]
    fn decode_names_the_bad_byte() {
        assert_eq!(decode("é".as_bytes(), None).unwrap(), "é");
        let error = decode(b"ok\n\xc3\xa9x\xff", Some("f")).unwrap_err();
        assert_eq!((error.line, error.column, error.code), (2, 3, "policy.encoding"));
        assert_eq!(error.message, "byte 0xff at offset 6 is not UTF-8");
    }

    const SCHEMA: &str = "entity U; action a, b appliesTo { principal: U, resource: U, context: { n?: Long } };";

    #[test]
    fn schema_in_both_forms_and_strict_validation() {
        let json = r#" {"": {"entityTypes": {"U": {}}, "actions": {}}}"#;
        assert!(parse_schema(&Source::unnamed(json)).is_ok());
        let schema = parse_schema(&Source::unnamed(SCHEMA)).unwrap();
        let check = |text: &str| {
            on_parser_thread(|| {
                let set = parse_policies(&Source::unnamed(text)).unwrap();
                validate_named(&set, &schema, |_| Some("v.cedar"))
            })
            .unwrap()
        };
        assert!(
            check("permit(principal, action, resource) when { context has n && context.n > 1 };").unwrap().is_empty()
        );
        let errors =
            check("permit(principal, action == Action::\"a\", resource)\nwhen { context.n > 1 };").unwrap_err();
        let shown = errors.first();
        assert_eq!((shown.code, shown.line, shown.column), ("policy.invalid", 2, 8), "{shown}");
        assert!(shown.to_string().starts_with("v.cedar:2:8: "), "{shown}");
        let warnings = check("permit(principal, action, resource) when { principal is U && \"a\\u{202e}\" == \"a\" };");
        assert!(!warnings.unwrap().is_empty());
    }

    #[test]
    fn schema_errors_have_positions() {
        let error = parse_schema(&Source { name: Some("s"), text: "entity U = {\n a Long };" }).unwrap_err();
        assert_eq!((error.first().code, error.first().line), ("schema.syntax", 2), "{error}");
        let error = parse_schema(&Source::unnamed("{\n\"\": 1}")).unwrap_err();
        assert_eq!(error.first().code, "schema.syntax", "{error}");
    }

    #[test]
    fn schemas_that_explode_are_refused() {
        let refused = |text: String| parse_schema(&Source::unnamed(&text)).map_or_else(|e| e.first().code, |_| "ok");
        let doubling: String = (0..40).map(|i| format!("type T{i} = {{a: T{0}, b: T{0}}};", i + 1)).collect();
        assert_eq!(refused(format!("{doubling} type T40 = Long; entity X {{a: T0}};")), "schema.too_large");
        let chain: String = (0..2_000).map(|i| format!("type T{i} = T{};", i + 1)).collect();
        assert_eq!(refused(format!("{chain} type T2000 = Long;")), "schema.too_deep");
        let actions: String = (0..2_000).map(|i| format!("action a{i} in a{};", i + 1)).collect();
        assert_eq!(refused(format!("{actions} action a2000;")), "schema.too_large");
        let entities: String = (0..2_000).map(|i| format!("entity E{i} in E{};", i + 1)).collect();
        assert_eq!(refused(format!("namespace N {{ {entities} entity E2000; }}")), "schema.too_large");
        assert_eq!(refused("type A = B; type B = A;".into()), "schema.syntax", "cycles are the reference's to refuse");
    }

    #[test]
    fn validation_work_is_bounded() {
        let types: Vec<_> = (0..1_000).map(|i| format!("E{i}")).collect();
        let list = types.join(",");
        let text = format!("entity {list}; action a appliesTo {{ principal: [{list}], resource: [{list}] }};");
        let schema = parse_schema(&Source::unnamed(&text)).unwrap();
        let policy =
            format!("permit(principal, action, resource) when {{ {}true }};", "principal == resource && ".repeat(500));
        let error =
            on_parser_thread(|| validate(&parse_policies(&Source::unnamed(&policy)).unwrap(), &schema)).unwrap();
        assert_eq!(error.unwrap_err().first().code, "policy.too_large");
    }
}
