//! Reads Cedar's entity and context JSON through the reference, so that escapes, schema-directed forms and refusals are
//! the reference's own, and converts its values to ours.
//!
//! The reference's closure is never asked for: it would cost a hash set per entity. Without a closure it compares an
//! action of the document with the schema's (closed) one as written, so actions are checked apart, after the schema is
//! known to declare them all; the schema bounds that closure.
//!
//! Two differences, both towards refusing: `unknown(..)` values have no meaning here and are refused at loading (the
//! reference reads them and errs when they are evaluated), and messages leave out the values that the reference's
//! messages repeat, since documents hold what must not reach a log.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;

use cedar_policy_core::ast;
use cedar_policy_core::entities::conformance::err::EntitySchemaConformanceError;
use cedar_policy_core::entities::err::EntitiesError;
use cedar_policy_core::entities::json::err::JsonDeserializationError;
use cedar_policy_core::entities::json::{ContextJsonDeserializationError, NullContextSchema};
use cedar_policy_core::entities::{
    ContextJsonParser, ContextSchema, Entities as CoreEntities, EntityJsonParser, NoEntitiesSchema, Schema,
    TCComputation,
};
use cedar_policy_core::extensions::Extensions;
use cedar_policy_core::validator::{CoreSchema, context_schema_for_action};
use hashbrown::HashTable;
use miette::Diagnostic;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use smol_str::SmolStr;

use super::{EntityData, Field, refuse, shown};
use crate::limits;
use crate::policy::error::{PolicyError, PolicyErrors, position};
use crate::policy::extension::{parse_datetime, parse_decimal, parse_duration, parse_ip};
use crate::policy::front::{self, Document};
use crate::policy::parse::{self, Source};
use crate::uid::EntityUid;
use crate::value::Val;

/// Reads an entities document: a list of `{uid, attrs, parents, tags}` with the escapes `__entity` and `__extn`. With a
/// schema, values are also read as it declares them, everything must conform to it, and its actions are added.
pub fn read_json(text: &str, schema: Option<&cedar_policy::Schema>) -> Result<Vec<EntityData>, PolicyErrors> {
    check_size(Document::Entities, text, limits::ENTITIES_BYTES_MAX)?;
    parse::on_parser_thread(|| {
        let entities = match schema {
            Some(schema) => read_with_schema(text, &CoreSchema::new(schema.as_ref())),
            None => read_plain(text, None::<&NoEntitiesSchema>),
        };
        let entities = entities.map_err(|error| entities_error(text, &error))?;
        let mut uids = Uids::default();
        entities.into_iter().map(|entity| entity_data(entity, &mut uids)).collect()
    })?
}

/// Reads a context in Cedar's JSON, escapes included. Never for tool arguments: those are plain data.
pub fn context_from_json(text: &str) -> Result<Val, PolicyErrors> {
    read_context(text, || Ok(None::<NullContextSchema>))
}

/// The same as `action` declares its context in `schema`.
pub fn context_from_json_with_schema(
    text: &str,
    schema: &cedar_policy::Schema,
    action: &EntityUid,
) -> Result<Val, PolicyErrors> {
    read_context(text, || {
        let declared = action
            .ty()
            .parse::<ast::EntityType>()
            .ok()
            .map(|ty| ast::EntityUID::from_components(ty, ast::Eid::new(action.id()), None))
            .and_then(|uid| context_schema_for_action(schema.as_ref(), &uid));
        declared.map(Some).ok_or_else(|| {
            let message = format!("action `{}` does not exist in the schema", shown(action));
            refuse("context.unknown_action", message, None)
        })
    })
}

fn read_context<S: ContextSchema>(
    text: &str,
    schema: impl FnOnce() -> Result<Option<S>, PolicyErrors> + Send,
) -> Result<Val, PolicyErrors> {
    check_size(Document::Context, text, limits::CONTEXT_BYTES_MAX)?;
    parse::on_parser_thread(|| {
        refuse_repeated_keys(text)?;
        let schema = schema()?;
        let parser = ContextJsonParser::new(schema.as_ref(), Extensions::all_available());
        let context = parser.from_json_str(text).map_err(|error| context_error(text, &error))?;
        match context {
            ast::Context::Value(fields) => record(&fields, &mut Uids::default()),
            ast::Context::RestrictedResidual(_) => None,
        }
        .ok_or_else(|| refuse("context.syntax", "the context holds an unknown value".to_owned(), None))
    })?
}

/// The reference takes the last of two equal keys of a context (and refuses them in entities): whoever reads the first
/// one elsewhere would see another request.
fn refuse_repeated_keys(text: &str) -> Result<(), PolicyErrors> {
    match serde_json::from_str::<DistinctKeys>(text) {
        Err(error) if error.is_data() => Err(refuse("context.syntax", "an object has the same key twice".into(), None)),
        // What is no JSON at all is reported by the reader.
        _ => Ok(()),
    }
}

/// Any JSON in which no object repeats a key.
struct DistinctKeys;

impl<'de> Deserialize<'de> for DistinctKeys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for DistinctKeys {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON without repeated keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key) {
                return Err(serde::de::Error::custom("repeated key"));
            }
            map.next_value::<Self>()?;
        }
        Ok(Self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(Self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(Self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(Self)
    }
}

fn check_size(document: Document, text: &str, bytes_max: usize) -> Result<(), PolicyErrors> {
    let source = Source::unnamed(text);
    front::check_json(document, &source, bytes_max, limits::JSON_NESTING_MAX).map_err(|mut error| {
        // The excerpt would show values.
        error.offending.clear();
        error.into()
    })
}

fn read_plain<S: Schema>(text: &str, schema: Option<&S>) -> Result<Vec<ast::Entity>, Box<EntitiesError>> {
    let extensions = Extensions::all_available();
    let parser = EntityJsonParser::new(schema, extensions, TCComputation::AssumeAlreadyComputed);
    Ok(parser.iter_from_json_str(text)?.collect())
}

/// Reads, checks against the schema and adds the schema's actions, as the reference does in one step with its closure.
fn read_with_schema(text: &str, schema: &CoreSchema<'_>) -> Result<Vec<ast::Entity>, Box<EntitiesError>> {
    let extensions = Extensions::all_available();
    let declared_len = schema.action_entities().count();
    let mut read = read_plain(text, Some(schema))?;
    // The list ends with the schema's actions; they come back from `from_entities` below.
    read.truncate(read.len().saturating_sub(declared_len));
    let (actions, others): (Vec<_>, Vec<_>) = read.into_iter().partition(|entity| entity.uid().is_action());
    let no_closure = TCComputation::AssumeAlreadyComputed;
    if let Some(undeclared) = actions.iter().find(|entity| schema.action(entity.uid()).is_none()) {
        let alone = [ast::Entity::with_uid(undeclared.uid().clone())];
        CoreEntities::from_entities(alone, Some(schema), no_closure, extensions)?;
    }
    CoreEntities::from_entities(actions, Some(schema), TCComputation::ComputeNow, extensions)?;
    let all = CoreEntities::from_entities(others, Some(schema), no_closure, extensions)?;
    Ok(all.into_iter().collect())
}

/// Uids met while reading one document, so that an entity, its children and the attributes that refer to it share one.
#[derive(Default)]
struct Uids {
    table: HashTable<Arc<EntityUid>>,
}

impl Uids {
    fn share(&mut self, uid: &ast::EntityUID) -> Arc<EntityUid> {
        let uid = EntityUid::new(&uid.entity_type().to_string(), uid.eid().as_ref());
        if let Some(known) = self.table.find(uid.hash(), |known| **known == uid) {
            return Arc::clone(known);
        }
        let uid = Arc::new(uid);
        self.table.insert_unique(uid.hash(), Arc::clone(&uid), |known| known.hash());
        uid
    }
}

fn entity_data(entity: ast::Entity, uids: &mut Uids) -> Result<EntityData, PolicyErrors> {
    let (uid, attrs, indirect, parents, tags) = entity.into_inner();
    let uid = uids.share(&uid);
    let mut fields = |kind: &str, read: &mut dyn Iterator<Item = (SmolStr, ast::PartialValue)>| {
        read.map(|(name, value)| match value {
            ast::PartialValue::Value(value) => convert(&value, uids).map(|value| (Box::from(name.as_str()), value)),
            ast::PartialValue::Residual(_) => None,
        })
        .collect::<Option<Vec<Field>>>()
        .ok_or_else(|| {
            let message = format!("`{}` holds an unknown value in its {kind}", shown(&uid));
            refuse("entities.syntax", message, Some("`unknown` has no meaning outside partial evaluation"))
        })
    };
    let attrs = fields("attributes", &mut attrs.into_iter())?;
    let tags = fields("tags", &mut tags.into_iter())?;
    // Only the schema's actions can have indirect ancestors, and their parents are closed already.
    let parents = parents.iter().chain(&indirect).map(|parent| uids.share(parent)).collect();
    Ok(EntityData { uid, attrs, tags, parents })
}

fn convert(value: &ast::Value, uids: &mut Uids) -> Option<Val> {
    Some(match value.value_kind() {
        ast::ValueKind::Lit(ast::Literal::Bool(flag)) => Val::Bool(*flag),
        ast::ValueKind::Lit(ast::Literal::Long(number)) => Val::Long(*number),
        ast::ValueKind::Lit(ast::Literal::String(text)) => Val::Str(Box::from(text.as_str())),
        ast::ValueKind::Lit(ast::Literal::EntityUID(uid)) => Val::Entity(uids.share(uid)),
        ast::ValueKind::Set(items) => Val::set(items.iter().map(|item| convert(item, uids)).collect::<Option<_>>()?),
        ast::ValueKind::Record(fields) => record(fields, uids)?,
        ast::ValueKind::ExtensionValue(value) => {
            extension(ast::RestrictedExpr::from(value.as_ref().clone()).as_borrowed())?
        }
    })
}

fn record(fields: &BTreeMap<SmolStr, ast::Value>, uids: &mut Uids) -> Option<Val> {
    let fields = fields.iter().map(|(name, value)| Some((Box::from(name.as_str()), convert(value, uids)?)));
    Some(Val::record(fields.collect::<Option<_>>()?))
}

/// Reads the call by which the reference remembers an extension value: the one that made it, or for computed values
/// `duration("5ms")` and `datetime("1970-01-01").offset(duration("5ms"))`. The value itself is private to it.
fn extension(call: ast::BorrowedRestrictedExpr<'_>) -> Option<Val> {
    let (name, mut args) = call.as_extn_fn_call()?;
    let name = name.to_string();
    let first = args.next()?;
    if name == "offset" {
        return match (extension(first)?, extension(args.next()?)?) {
            (Val::Datetime(at_ms), Val::Duration(by_ms)) => at_ms.checked_add(by_ms).map(Val::Datetime),
            _ => None,
        };
    }
    let text = first.as_string()?;
    match name.as_str() {
        "decimal" => parse_decimal(text).map(Val::Decimal),
        "duration" => parse_duration(text).map(Val::Duration),
        "datetime" => parse_datetime(text).map(Val::Datetime),
        "ip" => parse_ip(text).map(|ip| Val::Ip(Box::new(ip))),
        _ => None,
    }
}

fn entities_error(text: &str, error: &EntitiesError) -> PolicyErrors {
    match error {
        EntitiesError::Deserialization(error) => json_error("entities.syntax", text, error),
        EntitiesError::Duplicate(error) => refuse("entities.duplicate", error.to_string(), None),
        EntitiesError::TransitiveClosureError(error) => refuse("entities.cycle", error.to_string(), None),
        EntitiesError::InvalidEntity(error) => conformance_error(error),
        other => refuse("entities.syntax", other.to_string(), None),
    }
}

fn context_error(text: &str, error: &ContextJsonDeserializationError) -> PolicyErrors {
    match error {
        ContextJsonDeserializationError::JsonDeserialization(error) => json_error("context.syntax", text, error),
        ContextJsonDeserializationError::ContextCreation(error) => {
            let message = match error {
                ast::ContextCreationError::NotARecord(_) => "the context is not a record".to_owned(),
                other => without_call_argument(&other.to_string()),
            };
            refuse("context.syntax", message, None)
        }
    }
}

fn json_error(code: &'static str, text: &str, error: &JsonDeserializationError) -> PolicyErrors {
    use JsonDeserializationError as E;
    let message = error.to_string();
    let message = match error {
        E::Serde(_) => return serde_error(code, text, &message),
        E::EntitySchemaConformance(error) => return conformance_error(error),
        E::ParseEscape(_) => cut(&message, ": ").to_owned(),
        E::ExpectedLiteralEntityRef(_) | E::ExpectedExtnValue(_) => cut(&message, ", but got `").to_owned(),
        E::TypeMismatch(_) => without_mismatched_value(&message),
        E::RestrictedExpressionError(_) => cut(&message, ": `").to_owned(),
        E::EntityAttributeEvaluation(_) => without_call_argument(&message),
        _ => message,
    };
    refuse(code, message, error.help().map(|help| help.to_string()).as_deref())
}

fn conformance_error(error: &EntitySchemaConformanceError) -> PolicyErrors {
    let message = error.to_string();
    let message = match error {
        EntitySchemaConformanceError::TypeMismatch(_) => without_mismatched_value(&message),
        _ => message,
    };
    refuse("entities.invalid", message, error.help().map(|help| help.to_string()).as_deref())
}

/// The text before `mark`, or all of it.
fn cut<'t>(text: &'t str, mark: &str) -> &'t str {
    text.split_once(mark).map_or(text, |(before, _)| before)
}

/// "in attribute `a` on `T::"x"`, type mismatch: value was expected to have .., but it actually has ..: `VALUE`".
fn without_mismatched_value(message: &str) -> String {
    match message.split_once("type mismatch: ") {
        Some((place, mismatch)) => format!("{place}type mismatch: {}", cut(mismatch, ": `")),
        None => cut(message, ": `").to_owned(),
    }
}

/// "... error while evaluating `decimal` extension function: VALUE is not ..".
fn without_call_argument(message: &str) -> String {
    const MARK: &str = " extension function";
    match message.split_once(MARK) {
        Some((before, _)) => format!("{before}{MARK}"),
        None => message.to_owned(),
    }
}

/// A message of the JSON reader: its position becomes ours, and the value it quotes is left out.
fn serde_error(code: &'static str, text: &str, message: &str) -> PolicyErrors {
    let (what, place) = message.rsplit_once(" at line ").unwrap_or((message, ""));
    let quotes_value = what.starts_with("invalid type: ") || what.starts_with("invalid value: ");
    let what = match what.split_once(", expected ").filter(|_| quotes_value) {
        Some((found, _)) => {
            let kind = found.split(['`', '"']).next().unwrap_or_default().trim_end();
            let expected = what.rsplit_once(", expected ").map_or("", |(_, expected)| expected);
            format!("{kind}, expected {expected}")
        }
        None => what.to_owned(),
    };
    let mut error = if what.contains("untagged enum") {
        // The reference's wording names its own types.
        PolicyError::new(code, "a value is none of boolean, 64-bit integer, string, list and object")
            .help("write other numbers as `{\"__extn\": {\"fn\": \"decimal\", \"arg\": \"1.5\"}}`")
    } else {
        PolicyError::new(code, what)
    };
    if let Some((line, column)) = place.split_once(" column ")
        && let (Ok(line), Ok(column)) = (line.parse::<usize>(), column.parse::<usize>())
    {
        // The reader counts columns in bytes. The excerpt stays empty: it would show values.
        let line_start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        (error.line, error.column) = position(text, line_start.saturating_add(column).saturating_sub(1));
    }
    error.into()
}
