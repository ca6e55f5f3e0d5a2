//! A tool's JSON Schema, as far as it decides what its arguments are.
//!
//! Cedar has no float and no null, and compares no decimal with an integer; so somebody has to say which of the two a
//! number is. The schema does: under `number` both 5 and 1.5 become decimals, under `integer` 5.0 becomes 5. It also
//! decides the shape: a value of a type that is not allowed, a property that is missing or not expected, or a value
//! that is not in `enum`, denies the call before policy sees it, so that no forbid is dodged by a list where text was
//! meant.
//!
//! Read: `type`, `properties`, `required`, `additionalProperties`, `items`, `enum`, `const`, `anyOf`, `oneOf` (both:
//! the first form that fits), `allOf`, and `$ref` into the same document. `prefixItems` switches `items` off.
//! Everything else (`minimum`, `pattern`, `format`, `not`, `if`, ...) only describes: it neither refuses nor converts
//! anything here, and what it says must be written as a policy to hold. Refused at load, because ignoring them would
//! misread arguments: references out of the document, and `patternProperties` beside `additionalProperties`.
//!
//! Recursion is bounded by depth, alternatives by a number of steps.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};

use crate::arguments::{Argument, ArgumentRef, Arguments, Conversion, decimal_from_float};
use crate::limits::{TOOL_SCHEMA_BYTES_MAX, TOOL_SCHEMA_DEPTH_MAX, TOOL_SCHEMA_NODES_MAX, TOOL_SCHEMA_STEPS_MAX};

/// The JSON types a value may have, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Types(u8);

impl Types {
    const NONE: Self = Self(0);
    const ANY: Self = Self(0b111_1111);
    const NULL: Self = Self(1);
    const BOOLEAN: Self = Self(2);
    const INTEGER: Self = Self(4);
    const NUMBER: Self = Self(8);
    const STRING: Self = Self(16);
    const ARRAY: Self = Self(32);
    const OBJECT: Self = Self(64);

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOLEAN,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            "string" => Self::STRING,
            "array" => Self::ARRAY,
            "object" => Self::OBJECT,
            _ => return None,
        })
    }

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

type NodeId = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Additional {
    Allowed,
    Refused,
    Schema(NodeId),
}

#[derive(Debug)]
struct Node {
    types: Types,
    /// Whether `type` was given: only then a number is converted
    typed: bool,
    properties: Vec<(Box<str>, NodeId)>,
    required: Vec<Box<str>>,
    additional: Additional,
    items: Option<NodeId>,
    one_of: Option<Vec<Json>>,
    any_of: Vec<NodeId>,
    all_of: Vec<NodeId>,
}

impl Node {
    const fn any() -> Self {
        Self {
            types: Types::ANY,
            typed: false,
            properties: Vec::new(),
            required: Vec::new(),
            additional: Additional::Allowed,
            items: None,
            one_of: None,
            any_of: Vec::new(),
            all_of: Vec::new(),
        }
    }
}

impl Node {
    /// Properties are sorted by name.
    fn property(&self, name: &str) -> Option<NodeId> {
        let at = self.properties.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        self.properties.get(at).map(|(_, id)| *id)
    }
}

/// A compiled tool schema.
#[derive(Debug)]
pub struct ToolSchema {
    nodes: Vec<Node>,
    root: NodeId,
}

/// Why arguments do not fit, without any value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Misfit {
    Type,
    Missing(NodeId, usize),
    Unexpected,
    NotListed,
    NoForm,
    TooDeep,
    TooManySteps,
}

impl ToolSchema {
    /// Reads a schema from JSON text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > TOOL_SCHEMA_BYTES_MAX {
            return Err(format!("schema has {} bytes, the limit is {TOOL_SCHEMA_BYTES_MAX}", text.len()));
        }
        let json: Json = serde_json::from_str(text).map_err(|error| format!("schema is not JSON: {error}"))?;
        let mut compiler =
            Compiler { document: &json, nodes: Vec::new(), by_pointer: HashMap::new(), pending: Vec::new() };
        let root = compiler.node(&json, "#")?;
        compiler.fill_references()?;
        let schema = Self { nodes: compiler.nodes, root };
        if !schema.types_of(root, 0).has(Types::OBJECT) {
            return Err("the root of a tool's schema must allow an object: arguments are named".to_owned());
        }
        Ok(schema)
    }

    /// Whether the root declares properties and `name` is not one of them.
    pub fn lacks(&self, name: &str) -> bool {
        let Some(root) = self.node(self.root) else { return false };
        !root.properties.is_empty() && root.all_of.is_empty() && root.property(name).is_none()
    }

    /// Checks the arguments and converts their numbers in place; the reason if they do not fit.
    ///
    /// `conversions` is a buffer that is reused from call to call.
    pub fn apply(&self, arguments: &mut Arguments, conversions: &mut Vec<Conversion>) -> Result<(), String> {
        conversions.clear();
        let Some(root) = arguments.root() else { return Ok(()) };
        let mut pass = Pass { schema: self, conversions, steps: 0 };
        if let Err((at, misfit)) = pass.value(self.root, root, 0) {
            return Err(self.explain(arguments, at, misfit));
        }
        for conversion in conversions.drain(..) {
            arguments.convert(conversion);
        }
        Ok(())
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    fn types_of(&self, id: NodeId, depth: usize) -> Types {
        let Some(node) = self.node(id).filter(|_| depth < TOOL_SCHEMA_DEPTH_MAX) else { return Types::ANY };
        let inner = node.all_of.iter().map(|inner| self.types_of(*inner, depth.saturating_add(1)));
        inner.fold(node.types, |types, inner| Types(types.0 & inner.0))
    }

    fn explain(&self, arguments: &Arguments, at: u32, misfit: Misfit) -> String {
        let location = arguments.location(at);
        let shown = super::names::shown(&location);
        let what = if location.is_empty() { "the arguments".to_owned() } else { format!("argument `{shown}`") };
        match misfit {
            Misfit::Type => format!("{what} has a type that the tool's schema does not allow"),
            Misfit::Missing(node, index) => {
                let name = self.node(node).and_then(|node| node.required.get(index)).map_or("", |name| name);
                let name = super::names::shown(name);
                if location.is_empty() {
                    format!("the required argument `{name}` is missing")
                } else {
                    format!("{what} lacks the required property `{name}`")
                }
            }
            Misfit::Unexpected => format!("{what} is not a property of the tool's schema"),
            Misfit::NotListed => format!("{what} has a value that the tool's schema does not list"),
            Misfit::NoForm => format!("{what} fits none of the forms that the tool's schema allows"),
            Misfit::TooDeep => format!("{what} nests deeper in the tool's schema than {TOOL_SCHEMA_DEPTH_MAX} levels"),
            Misfit::TooManySteps => {
                format!("the arguments take more than {TOOL_SCHEMA_STEPS_MAX} steps to read by the tool's schema")
            }
        }
    }
}

struct Pass<'p> {
    schema: &'p ToolSchema,
    conversions: &'p mut Vec<Conversion>,
    steps: u32,
}

impl Pass<'_> {
    fn value(&mut self, id: NodeId, value: ArgumentRef<'_>, depth: usize) -> Result<(), (u32, Misfit)> {
        let at = value.index();
        self.steps = self.steps.saturating_add(1);
        if self.steps > TOOL_SCHEMA_STEPS_MAX {
            return Err((at, Misfit::TooManySteps));
        }
        if depth >= TOOL_SCHEMA_DEPTH_MAX {
            return Err((at, Misfit::TooDeep));
        }
        let schema = self.schema;
        let Some(node) = schema.node(id) else { return Err((at, Misfit::NoForm)) };
        self.scalar(node, value)?;
        if let Some(listed) = &node.one_of {
            self.charge(listed.len());
        }
        if let Some(listed) = &node.one_of {
            let found = listed.iter().find(|json| equals(json, value)).ok_or((at, Misfit::NotListed))?;
            if !node.typed {
                self.as_listed(found, value);
            }
        }
        let below = depth.saturating_add(1);
        match value.value() {
            Argument::Object => self.object(id, node, value, below)?,
            Argument::List => {
                if let Some(items) = node.items {
                    for (_, child) in value.children() {
                        self.value(items, child, below)?;
                    }
                }
            }
            _ => {}
        }
        for inner in &node.all_of {
            self.value(*inner, value, below)?;
        }
        self.alternatives(node, value, below)
    }

    /// Counts text compares as parts of a step; the next step notices.
    fn charge(&mut self, compares: usize) {
        const COMPARES_PER_STEP: usize = 16;
        let steps = u32::try_from(compares.checked_div(COMPARES_PER_STEP).unwrap_or_default()).unwrap_or(u32::MAX);
        self.steps = self.steps.saturating_add(steps);
    }

    /// The type, and what a number becomes.
    fn scalar(&mut self, node: &Node, value: ArgumentRef<'_>) -> Result<(), (u32, Misfit)> {
        let at = value.index();
        let types = node.types;
        let require = |allowed: Types| if types.has(allowed) { Ok(()) } else { Err((at, Misfit::Type)) };
        let number = node.typed && types.has(Types::NUMBER);
        match value.value() {
            Argument::Null => require(Types::NULL)?,
            Argument::Bool(_) => require(Types::BOOLEAN)?,
            Argument::Str(_) => require(Types::STRING)?,
            Argument::List => require(Types::ARRAY)?,
            Argument::Object => require(Types::OBJECT)?,
            Argument::Long(whole) if number => self.conversions.push(
                whole
                    .checked_mul(10_000)
                    .map_or(Conversion::Unrepresentable(at), |units| Conversion::Decimal(at, units)),
            ),
            // Pushed although it is one already: where several schemas apply, the last decides, however it was written.
            Argument::Long(whole) if node.typed && types.has(Types::INTEGER) => {
                self.conversions.push(Conversion::Long(at, whole));
            }
            // An integer beyond 64 bits is of the right type; it errs when it is read.
            Argument::Long(_) | Argument::Unrepresentable => require(Types::INTEGER.with(Types::NUMBER))?,
            Argument::Float(float) if number => self.conversions.push(
                decimal_from_float(float)
                    .map_or(Conversion::Unrepresentable(at), |units| Conversion::Decimal(at, units)),
            ),
            Argument::Float(float) if node.typed && types.has(Types::INTEGER) => {
                self.conversions.push(integer(at, float).ok_or((at, Misfit::Type))?);
            }
            Argument::Float(_) | Argument::Decimal(_) => require(Types::NUMBER)?,
        }
        Ok(())
    }

    /// Without a type, a number becomes what the listed one is: `1000` and `1000.0` must not be two values to policies.
    fn as_listed(&mut self, listed: &Json, value: ArgumentRef<'_>) {
        if !matches!(value.value(), Argument::Long(_) | Argument::Float(_) | Argument::Decimal(_)) {
            return;
        }
        let at = value.index();
        let decimal = || listed.as_f64().and_then(decimal_from_float).map(|units| Conversion::Decimal(at, units));
        let kind = listed.as_i64().map(|whole| Conversion::Long(at, whole)).or_else(decimal);
        self.conversions.push(kind.unwrap_or(Conversion::Unrepresentable(at)));
    }

    fn object(&mut self, id: NodeId, node: &Node, object: ArgumentRef<'_>, depth: usize) -> Result<(), (u32, Misfit)> {
        let mut children = 0_usize;
        for (key, child) in object.children() {
            children = children.saturating_add(1);
            let known = node.property(key);
            match (known, node.additional) {
                (Some(schema), _) | (None, Additional::Schema(schema)) => self.value(schema, child, depth)?,
                (None, Additional::Refused) => return Err((child.index(), Misfit::Unexpected)),
                (None, Additional::Allowed) => {}
            }
        }
        self.charge(children.saturating_mul(node.required.len()));
        match node.required.iter().position(|name| object.get(name).is_none()) {
            Some(index) => Err((object.index(), Misfit::Missing(id, index))),
            None => Ok(()),
        }
    }

    /// The first form that fits decides; what a form that does not fit would have converted is taken back.
    fn alternatives(&mut self, node: &Node, value: ArgumentRef<'_>, depth: usize) -> Result<(), (u32, Misfit)> {
        if node.any_of.is_empty() {
            return Ok(());
        }
        let before = self.conversions.len();
        for form in &node.any_of {
            match self.value(*form, value, depth) {
                Ok(()) => return Ok(()),
                Err(stop @ (_, Misfit::TooDeep | Misfit::TooManySteps)) => return Err(stop),
                Err(_) => self.conversions.truncate(before),
            }
        }
        Err((value.index(), Misfit::NoForm))
    }
}

/// A float that is a whole number; `None` if it is not one. Beyond 64 bits it is whole but has no Cedar value.
fn integer(at: u32, float: f64) -> Option<Conversion> {
    /// 2^63, exact as a double; the largest double below it is a valid i64.
    const BOUND: f64 = 9_223_372_036_854_775_808.0;
    if !float.is_finite() || float.fract() != 0.0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "whole and within the range of i64")]
    Some(if (-BOUND..BOUND).contains(&float) {
        Conversion::Long(at, float as i64)
    } else {
        Conversion::Unrepresentable(at)
    })
}

/// JSON equality, in which 1 and 1.0 are one number. Recursion is bounded by the nesting of the schema's own JSON.
fn equals(json: &Json, value: ArgumentRef<'_>) -> bool {
    match (json, value.value()) {
        (Json::Null, Argument::Null) => true,
        (Json::Bool(a), Argument::Bool(b)) => *a == b,
        (Json::String(a), Argument::Str(b)) => a == b,
        (Json::Number(a), Argument::Long(b)) => {
            #[expect(clippy::cast_precision_loss, reason = "only a literal written as a float comes here")]
            #[expect(clippy::float_cmp, reason = "the question is whether the two are the same double")]
            let as_float = || a.is_f64() && a.as_f64().is_some_and(|a| a == b as f64);
            a.as_i64().map_or_else(as_float, |a| a == b)
        }
        #[expect(clippy::float_cmp, reason = "the question is whether the two are the same double")]
        (Json::Number(a), Argument::Float(b)) => a.as_f64().is_some_and(|a| a == b),
        (Json::Array(a), Argument::List) => {
            let mut children = value.children();
            a.iter().all(|a| children.next().is_some_and(|(_, b)| equals(a, b))) && children.next().is_none()
        }
        (Json::Object(a), Argument::Object) => {
            value.children().count() == a.len()
                && value.children().all(|(key, child)| a.get(key).is_some_and(|json| equals(json, child)))
        }
        _ => false,
    }
}

struct Compiler<'j> {
    document: &'j Json,
    nodes: Vec<Node>,
    by_pointer: HashMap<String, NodeId>,
    /// References that were met and not yet read: node, what it refers to, and the reference as written
    pending: Vec<(NodeId, &'j Json, &'j str)>,
}

impl<'j> Compiler<'j> {
    fn reserve(&mut self) -> Result<NodeId, String> {
        if self.nodes.len() >= TOOL_SCHEMA_NODES_MAX {
            return Err(format!("schema has more than {TOOL_SCHEMA_NODES_MAX} subschemas"));
        }
        self.nodes.push(Node::any());
        u32::try_from(self.nodes.len().saturating_sub(1)).map_err(|_| "schema is too large".to_owned())
    }

    fn fill_references(&mut self) -> Result<(), String> {
        while let Some((id, json, reference)) = self.pending.pop() {
            let inner = self.node(json, reference)?;
            if let Some(slot) = self.nodes.get_mut(id as usize) {
                slot.all_of.push(inner);
            }
        }
        Ok(())
    }

    /// Recursion is bounded by the nesting of the JSON; its reader stops at 128.
    fn node(&mut self, json: &'j Json, at: &str) -> Result<NodeId, String> {
        let id = self.reserve()?;
        if at == "#" {
            self.by_pointer.insert(String::new(), id);
        }
        let mut node = Node::any();
        match json {
            Json::Bool(true) => {}
            Json::Bool(false) => node.types = Types::NONE,
            Json::Object(map) => self.fill(&mut node, map, at)?,
            _ => return Err(format!("{at}: a schema is an object or a boolean")),
        }
        if let Some(slot) = self.nodes.get_mut(id as usize) {
            *slot = node;
        }
        Ok(id)
    }

    fn fill(&mut self, node: &mut Node, map: &'j Map<String, Json>, at: &str) -> Result<(), String> {
        if let Some(types) = map.get("type") {
            node.types = types_named(types).ok_or_else(|| format!("{at}: unknown type"))?;
            node.typed = true;
        }
        if let Some(properties) = map.get("properties") {
            let properties = properties.as_object().ok_or_else(|| format!("{at}: properties must be an object"))?;
            for (name, json) in properties {
                let id = self.node(json, &format!("{at}/properties/{name}"))?;
                node.properties.push((name.as_str().into(), id));
            }
            node.properties.sort_by(|a, b| a.0.cmp(&b.0));
        }
        if let Some(required) = map.get("required") {
            let names = required.as_array().ok_or_else(|| format!("{at}: required must be a list"))?;
            for name in names {
                let name = name.as_str().ok_or_else(|| format!("{at}: required must list names"))?;
                node.required.push(name.into());
            }
        }
        match map.get("additionalProperties") {
            None | Some(Json::Bool(true)) => {}
            Some(_) if map.contains_key("patternProperties") => {
                return Err(format!("{at}: patternProperties beside additionalProperties is not supported"));
            }
            Some(Json::Bool(false)) => node.additional = Additional::Refused,
            Some(json) => {
                node.additional = Additional::Schema(self.node(json, &format!("{at}/additionalProperties"))?);
            }
        }
        if let Some(items @ (Json::Object(_) | Json::Bool(_))) = map.get("items")
            && !map.contains_key("prefixItems")
        {
            node.items = Some(self.node(items, &format!("{at}/items"))?);
        }
        if let Some(listed) = map.get("enum") {
            node.one_of = Some(listed.as_array().ok_or_else(|| format!("{at}: enum must be a list"))?.clone());
        }
        if let Some(constant) = map.get("const") {
            // Both given: a value must satisfy each; `const` alone is the narrower one.
            let listed = node.one_of.as_ref().is_none_or(|listed| listed.contains(constant));
            node.one_of = Some(if listed { vec![constant.clone()] } else { Vec::new() });
        }
        self.combine(node, map, at)
    }

    fn combine(&mut self, node: &mut Node, map: &'j Map<String, Json>, at: &str) -> Result<(), String> {
        for word in ["anyOf", "oneOf"] {
            let Some(forms) = map.get(word) else { continue };
            let forms = forms.as_array().filter(|forms| !forms.is_empty());
            let forms = forms.ok_or_else(|| format!("{at}: {word} must be a list of schemas"))?;
            if let Some(types) = simple_union(forms) {
                // One node for all: a value under `integer or number` is a decimal whichever it looks like.
                let id = self.reserve()?;
                if let Some(slot) = self.nodes.get_mut(id as usize) {
                    (slot.types, slot.typed) = (types, true);
                }
                node.all_of.push(id);
                continue;
            }
            let mut ids = Vec::with_capacity(forms.len());
            for (index, json) in forms.iter().enumerate() {
                ids.push(self.node(json, &format!("{at}/{word}/{index}"))?);
            }
            if node.any_of.is_empty() {
                node.any_of = ids;
            } else {
                let id = self.reserve()?;
                if let Some(slot) = self.nodes.get_mut(id as usize) {
                    slot.any_of = ids;
                }
                node.all_of.push(id);
            }
        }
        if let Some(all) = map.get("allOf") {
            let all = all.as_array().ok_or_else(|| format!("{at}: allOf must be a list"))?;
            for (index, json) in all.iter().enumerate() {
                let id = self.node(json, &format!("{at}/allOf/{index}"))?;
                node.all_of.push(id);
            }
        }
        if let Some(reference) = map.get("$ref") {
            let reference = reference.as_str().ok_or_else(|| format!("{at}: $ref must be text"))?;
            node.all_of.push(self.reference(reference, at)?);
        }
        match map.get("$dynamicRef").or_else(|| map.get("$recursiveRef")) {
            Some(_) => Err(format!("{at}: only $ref into the same document is supported")),
            None => Ok(()),
        }
    }

    fn reference(&mut self, reference: &'j str, at: &str) -> Result<NodeId, String> {
        let shown = super::names::shown(reference);
        let pointer = reference.strip_prefix('#').ok_or_else(|| format!("{at}: `{shown}` is outside the schema"))?;
        if let Some(id) = self.by_pointer.get(pointer) {
            return Ok(*id);
        }
        let document = self.document;
        let json = document.pointer(pointer).ok_or_else(|| format!("{at}: `{shown}` names nothing"))?;
        // Known before it is filled, so that a reference to itself ends; filled later, so that a chain of references
        // is not a recursion.
        let id = self.reserve()?;
        self.by_pointer.insert(pointer.to_owned(), id);
        self.pending.push((id, json, reference));
        Ok(id)
    }
}

fn types_named(json: &Json) -> Option<Types> {
    match json {
        Json::String(name) => Types::named(name),
        Json::Array(names) => {
            names.iter().try_fold(Types::NONE, |types, name| Some(types.with(Types::named(name.as_str()?)?)))
        }
        _ => None,
    }
}

/// The union of alternatives that say nothing but a type.
fn simple_union(forms: &[Json]) -> Option<Types> {
    const DECIDING: [&str; 12] = [
        "properties",
        "required",
        "additionalProperties",
        "items",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "$dynamicRef",
        "$recursiveRef",
    ];
    forms.iter().try_fold(Types::NONE, |types, form| {
        let map = form.as_object().filter(|map| !DECIDING.iter().any(|word| map.contains_key(*word)))?;
        Some(types.with(types_named(map.get("type")?)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(json: &Json) -> Arguments {
        fn push(arguments: &mut Arguments, key: Option<&str>, json: &Json) {
            match json {
                Json::Null => arguments.push_null(key).unwrap(),
                Json::Bool(value) => arguments.push_bool(key, *value).unwrap(),
                Json::Number(number) => match (number.as_i64(), number.as_f64()) {
                    (Some(whole), _) => arguments.push_long(key, whole).unwrap(),
                    (None, float) => arguments.push_float(key, float.unwrap()).unwrap(),
                },
                Json::String(text) => arguments.push_str(key, text).unwrap(),
                Json::Array(items) => {
                    arguments.open_list(key).unwrap();
                    for item in items {
                        push(arguments, None, item);
                    }
                    arguments.close();
                }
                Json::Object(fields) => {
                    arguments.open_object(key).unwrap();
                    fields.iter().for_each(|(key, value)| push(arguments, Some(key), value));
                    arguments.close();
                }
            }
        }
        let mut arguments = Arguments::new();
        push(&mut arguments, None, json);
        arguments
    }

    fn shown(schema: &str, json: &str) -> String {
        let schema = ToolSchema::parse(schema).unwrap();
        let mut arguments = filled(&serde_json::from_str(json).unwrap());
        if let Err(reason) = schema.apply(&mut arguments, &mut Vec::new()) {
            return reason;
        }
        let of = |value| match value {
            Argument::Long(n) => format!("long {n}"),
            Argument::Decimal(n) => format!("decimal {n}"),
            Argument::Unrepresentable => "none".to_owned(),
            other => format!("{other:?}"),
        };
        let children = arguments.root().unwrap().children();
        children.map(|(key, child)| format!("{key}={}", of(child.value()))).collect::<Vec<_>>().join(" ")
    }

    const NUMBERS: &str = r#"{"type":"object","properties":{"n":{"type":"number"},"i":{"type":"integer"},
        "u":{"anyOf":[{"type":"integer"},{"type":"number","minimum":3},{"type":"null"}]}},"additionalProperties":false}"#;

    #[test]
    fn numbers_become_what_the_schema_says() {
        for (json, expected) in [
            (r#"{"n":5}"#, "n=decimal 50000"),
            (r#"{"n":1.5}"#, "n=decimal 15000"),
            (r#"{"n":1e300}"#, "n=none"),
            (r#"{"n":9223372036854775807}"#, "n=none"),
            (r#"{"i":5.0}"#, "i=long 5"),
            (r#"{"i":-7}"#, "i=long -7"),
            (r#"{"i":1e300}"#, "i=none"),
            (r#"{"u":5}"#, "u=decimal 50000"),
            (r#"{"u":null}"#, "u=Null"),
            (r#"{"i":5.5}"#, "argument `i` has a type that the tool's schema does not allow"),
            (r#"{"n":"5"}"#, "argument `n` has a type that the tool's schema does not allow"),
            (r#"{"n":null}"#, "argument `n` has a type that the tool's schema does not allow"),
            (r#"{"x":5}"#, "argument `x` is not a property of the tool's schema"),
        ] {
            assert_eq!(shown(NUMBERS, json), expected, "{json}");
        }
    }

    #[test]
    fn shapes_are_checked_through_references_and_alternatives() {
        let schema = r##"{"type":"object","required":["to"],"properties":{"to":{"type":"array","items":{"$ref":"#/$defs/a"}}},
            "$defs":{"a":{"oneOf":[{"type":"string","enum":["x","y"]},
                {"type":"object","required":["v"],"properties":{"v":{"type":"number"},"next":{"$ref":"#/$defs/a"}}}]}}}"##;
        assert!(shown(schema, r#"{"to":["x",{"v":1,"next":{"v":2,"next":"y"}}]}"#).starts_with("to="));
        assert_eq!(shown(schema, "{}"), "the required argument `to` is missing");
        assert!(shown(schema, r#"{"to":["x","z"]}"#).starts_with("argument `to[1]` fits none of the forms"));
        assert!(shown(schema, r#"{"to":[{"v":1,"next":{"v":"s"}}]}"#).starts_with("argument `to[0]` fits none"));
        assert!(shown(schema, r#"{"to":{"0":"x"}}"#).starts_with("argument `to` has a type"));
    }

    #[test]
    fn enum_and_const_compare_as_json() {
        let schema = r#"{"properties":{"a":{"enum":[1,"b",null,[1,{"k":true}]]},"c":{"const":2.0}}}"#;
        for json in [r#"{"a":1}"#, r#"{"a":1.0}"#, r#"{"a":"b"}"#, r#"{"a":[1,{"k":true}]}"#, r#"{"c":2}"#] {
            assert!(!shown(schema, json).contains("does not list"), "{json}");
        }
        for json in [r#"{"a":2}"#, r#"{"a":[1]}"#, r#"{"a":[1,{"k":true},1]}"#, r#"{"a":{}}"#, r#"{"c":2.5}"#] {
            assert!(shown(schema, json).contains("does not list"), "{json}");
        }
    }

    #[test]
    fn alternatives_and_references_are_bounded() {
        let looping = r##"{"type":"object","properties":{"a":{"$ref":"#/$defs/x"}},
            "$defs":{"x":{"$ref":"#/$defs/y"},"y":{"anyOf":[{"$ref":"#/$defs/x"}]}}}"##;
        assert!(shown(looping, r#"{"a":1}"#).contains("nests deeper"));
        let doubling = r##"{"type":"object","properties":{"a":{"$ref":"#/$defs/x"}},
            "$defs":{"x":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/x"}},
                                   {"items":{"$ref":"#/$defs/x"},"type":["array","string"]}]}}}"##;
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(28), "]".repeat(28));
        assert!(shown(doubling, &deep).contains("steps"), "{}", shown(doubling, &deep));
    }

    #[test]
    fn schemas_that_would_be_misread_are_refused() {
        for schema in [
            "[]",
            "1",
            r#"{"type":"string"}"#,
            r#"{"type":"objekt"}"#,
            r#"{"properties":{"a":{"$ref":"https://example.com/x"}}}"#,
            r##"{"properties":{"a":{"$ref":"#/$defs/missing"}}}"##,
            r##"{"properties":{"a":{"$dynamicRef":"#x"}}}"##,
            r#"{"patternProperties":{"^x":{}},"additionalProperties":false}"#,
            r#"{"required":"a"}"#,
        ] {
            assert!(ToolSchema::parse(schema).is_err(), "{schema}");
        }
        assert!(ToolSchema::parse(&format!("{{\"title\":\"{}\"}}", "x".repeat(TOOL_SCHEMA_BYTES_MAX))).is_err());
    }
}
