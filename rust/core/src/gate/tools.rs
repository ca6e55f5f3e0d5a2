//! The registry: which tools exist, who owns them, what their arguments are.
//!
//! A call names a tool; everything else about it comes from here, never from the caller. Names are looked up as they
//! are written: no folding, no trimming.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hashbrown::HashTable;
use unicode_normalization::is_nfc;

use super::names;
use super::schema::ToolSchema;
use super::state::GateState;
use crate::arguments::{Argument, ArgumentRef, Arguments};
use crate::audit::tree::Hash;
use crate::budget::unit::{Amounts, Unit};
use crate::limits::{SESSION_TEXT_BYTES_MAX, TOOLS_MAX};
use crate::policy::error::{PolicyError, PolicyErrors};
use crate::uid::{EntityUid, hash_text};

/// The action group that holds every tool.
pub const CALL_TOOL: &str = "call_tool";

/// A tool as the configuration or a runtime describes it.
#[derive(Debug, Clone)]
pub struct ToolSpec {
    /// Its name
    pub name: String,
    /// The server or system that owns it
    pub resource: Arc<EntityUid>,
    /// JSON Schema of its arguments, as text
    pub schema: Option<String>,
    /// Arguments that are file paths
    pub paths: Vec<String>,
    /// What a call costs; `None` where nobody says, and then a run that has a budget pays for one request
    pub cost: Option<Amounts>,
    /// Labels that its output brings into the session
    pub reads: Vec<String>,
}

impl ToolSpec {
    /// The digest of the definition, as entries write it.
    pub fn pin_text(&self) -> String {
        STANDARD.encode(super::evidence::pin(self))
    }
}

/// A registered tool.
#[derive(Debug)]
pub struct Tool {
    name: Box<str>,
    action: Arc<EntityUid>,
    resource: Arc<EntityUid>,
    schema: Option<ToolSchema>,
    paths: Vec<Box<str>>,
    cost: Option<Amounts>,
    reads: Vec<Box<str>>,
    /// Digest of its definition
    pin: Hash,
    /// What it is made of
    spec: ToolSpec,
}

impl Tool {
    /// Checks and compiles one description.
    pub fn new(spec: ToolSpec) -> Result<Self, PolicyError> {
        names::check(&spec.name).map_err(|message| PolicyError::new("tool.name", message))?;
        let shown = names::shown(&spec.name);
        let schema = spec
            .schema
            .as_deref()
            .map(ToolSchema::parse)
            .transpose()
            .map_err(|message| PolicyError::new("tool.schema", format!("tool `{shown}`: {message}")))?;
        for path in &spec.paths {
            if schema.as_ref().is_some_and(|schema| schema.lacks(path)) {
                let message = format!(
                    "tool `{shown}` lists `{}` in paths, but its schema has no such property",
                    names::shown(path)
                );
                return Err(PolicyError::new("tool.paths", message));
            }
        }
        if let Some(Err(error)) = spec.cost.map(|cost| cost.check()) {
            return Err(PolicyError::new("tool.cost", format!("tool `{shown}`: the cost of {error}")));
        }
        if let Some(label) = spec.reads.iter().find(|label| label.is_empty() || label.len() > SESSION_TEXT_BYTES_MAX) {
            let bytes = label.len();
            let message =
                format!("tool `{shown}`: a label in reads has {bytes} bytes, not 1 to {SESSION_TEXT_BYTES_MAX}");
            return Err(PolicyError::new("tool.reads", message));
        }
        Ok(Self {
            action: Arc::new(EntityUid::new("Action", &spec.name)),
            resource: Arc::clone(&spec.resource),
            name: spec.name.as_str().into(),
            schema,
            paths: spec.paths.iter().map(|path| path.as_str().into()).collect(),
            cost: spec.cost,
            reads: spec.reads.iter().map(|label| label.as_str().into()).collect(),
            pin: super::evidence::pin(&spec),
            spec,
        })
    }

    /// What it is made of.
    pub(super) const fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    /// Whether it is made of the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.pin == other.pin
    }

    /// What a call costs a run that has a budget, or one that has none.
    pub(super) fn cost(&self, has_budget: bool) -> Amounts {
        match self.cost {
            Some(cost) => cost,
            None if has_budget => Amounts::of(Unit::Requests, 1),
            None => Amounts::NONE,
        }
    }

    /// Labels that its output brings into the session.
    pub fn reads(&self) -> &[Box<str>] {
        &self.reads
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `Action::"NAME"`.
    pub const fn action(&self) -> &Arc<EntityUid> {
        &self.action
    }

    /// The server or system that owns it.
    pub fn resource(&self) -> &EntityUid {
        &self.resource
    }

    /// SHA-256 of its definition, which the audit log records.
    pub const fn pin(&self) -> &Hash {
        &self.pin
    }

    /// The schema of its arguments.
    pub const fn schema(&self) -> Option<&ToolSchema> {
        self.schema.as_ref()
    }

    /// Refuses path arguments that leave their directory or read differently for policy and file system: the reason.
    ///
    /// All text inside a named argument is looked at, so a path cannot hide in a list. Percent-encoding is not undone:
    /// a tool that decodes it must not be given a path.
    pub fn check_paths(&self, arguments: &Arguments) -> Result<(), String> {
        if self.paths.is_empty() {
            return Ok(());
        }
        let Some(root) = arguments.root() else { return Ok(()) };
        for (key, child) in root.children() {
            if self.paths.iter().any(|path| **path == *key) {
                check_path(child).map_err(|(at, what)| {
                    format!("path argument `{}` {what}", names::shown(&arguments.location(at)))
                })?;
            }
        }
        Ok(())
    }
}

/// Recursion is bounded by the nesting of arguments.
fn check_path(value: ArgumentRef<'_>) -> Result<(), (u32, &'static str)> {
    match value.value() {
        Argument::Str(text) => path_fault(text).map_or(Ok(()), |what| Err((value.index(), what))),
        Argument::List | Argument::Object => value.children().try_for_each(|(_, child)| check_path(child)),
        _ => Ok(()),
    }
}

fn path_fault(text: &str) -> Option<&'static str> {
    if text.contains('\0') {
        return Some("holds a NUL character");
    }
    if text.starts_with('~') {
        return Some("starts with `~`; give the full path");
    }
    if text.split(['/', '\\']).any(|component| component == "..") {
        return Some("has a `..` component; give the path without it");
    }
    (!text.is_ascii() && !is_nfc(text)).then_some("is not in Unicode normal form C")
}

/// All tools of a gate.
#[derive(Debug, Default)]
pub struct Registry {
    tools: Vec<Arc<Tool>>,
    by_name: HashTable<u32>,
}

impl Registry {
    /// Collects tools; refuses names that are equal but for case.
    pub fn new(tools: Vec<Arc<Tool>>) -> Result<Self, PolicyErrors> {
        if tools.len() > TOOLS_MAX {
            let message = format!("{} tools are registered, the limit is {TOOLS_MAX}", tools.len());
            return Err(PolicyError::new("tool.too_many", message).into());
        }
        let mut folded = std::collections::HashMap::with_capacity(tools.len());
        let mut by_name = HashTable::with_capacity(tools.len());
        for (index, tool) in tools.iter().enumerate() {
            if let Some(other) = folded.insert(names::fold(tool.name()), tool) {
                let message = format!("tools `{}` and `{}` have the same name but for case", other.name(), tool.name());
                return Err(PolicyError::new("tool.name", message).into());
            }
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let hash = |index: &u32| tools.get(*index as usize).map_or(0, |tool| hash_text(tool.name()));
            by_name.insert_unique(hash_text(tool.name()), index, hash);
        }
        Ok(Self { tools, by_name })
    }

    /// The number of the tool of exactly this name.
    #[inline]
    pub fn find(&self, name: &str) -> Option<u32> {
        let is_it = |index: &u32| self.tools.get(*index as usize).is_some_and(|tool| *tool.name == *name);
        self.by_name.find(hash_text(name), is_it).copied()
    }

    /// The tool of exactly this name.
    pub fn get(&self, name: &str) -> Option<&Tool> {
        self.find(name).and_then(|index| self.tool(index))
    }

    /// The same, to be kept.
    pub(super) fn shared(&self, name: &str) -> Option<&Arc<Tool>> {
        self.find(name).and_then(|index| self.tools.get(index as usize))
    }

    /// A tool by its number.
    #[inline]
    pub fn tool(&self, index: u32) -> Option<&Tool> {
        self.tools.get(index as usize).map(|tool| &**tool)
    }

    /// All tools, in the order of registration.
    pub fn tools(&self) -> &[Arc<Tool>] {
        &self.tools
    }
}

/// A tool's name that was looked up: the next check of the same state needs no look.
#[derive(Debug)]
pub struct Prepared {
    name: Box<str>,
    /// The state's generation and the tool's number in it plus one; 0 before the first look, and for none
    found: AtomicU64,
}

impl Prepared {
    /// A name that is looked up when it is first used.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), found: AtomicU64::new(0) }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(super) fn find(&self, state: &GateState) -> Option<u32> {
        // Relaxed: the word says all there is to say, of one state.
        let found = self.found.load(Ordering::Relaxed);
        let generation = state.generation() << 32;
        if found & !u64::from(u32::MAX) == generation && found != generation {
            return u32::try_from(found & u64::from(u32::MAX)).ok()?.checked_sub(1);
        }
        let index = state.registry().find(&self.name)?;
        self.found.store(generation | u64::from(index.saturating_add(1)), Ordering::Relaxed);
        Some(index)
    }
}

/// The lines that would register a tool, for whoever reads the denial.
pub(super) fn stanza(name: &str) -> String {
    if let Err(problem) = names::check(name) {
        return format!("the tool is not registered and cannot be: {problem}");
    }
    let bare = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let key = if bare { name.to_owned() } else { format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")) };
    format!(
        "tool `{}` is not registered; to register it, add to tollkeeper.toml:\n[tools.{key}]\nresource = 'Mcp::\"SERVER\"'",
        names::shown(name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> ToolSpec {
        ToolSpec {
            name: name.to_owned(),
            resource: Arc::new(EntityUid::new("Mcp", "m")),
            schema: None,
            paths: Vec::new(),
            cost: None,
            reads: Vec::new(),
        }
    }

    #[test]
    fn paths_that_leave_their_directory_are_refused() {
        for text in ["..", "a/../b", "/a/..", "..\\x", "a\\..\\b", "~", "~root/x", "a\0b", "/e\u{301}"] {
            assert!(path_fault(text).is_some(), "{text:?}");
        }
        for text in ["", "a..b", "/a/...", ".", "a/~b", "/é", "...", "a/.b"] {
            assert!(path_fault(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn names_equal_but_for_case_are_refused() {
        let tools =
            |names: &[&str]| Registry::new(names.iter().map(|name| Arc::new(Tool::new(spec(name)).unwrap())).collect());
        assert_eq!(tools(&["Send", "send"]).unwrap_err().first().code, "tool.name");
        let registry = tools(&["send", "read"]).unwrap();
        assert!(registry.get("send").is_some() && registry.get("Send").is_none() && registry.get(" send").is_none());
    }

    #[test]
    fn stanzas_are_valid_toml() {
        assert!(stanza("a.b\"c").contains("[tools.\"a.b\\\"c\"]"));
        assert!(stanza("send").contains("[tools.send]\n"));
        assert!(stanza("x\u{202e}y").contains("cannot be"));
        assert!(!stanza("x\u{202e}y").contains('\u{202e}'));
    }

    #[test]
    fn a_path_must_be_a_property() {
        let mut tool = spec("a");
        tool.schema = Some(r#"{"properties":{"file":{"type":"string"}}}"#.to_owned());
        tool.paths = vec!["fiel".to_owned()];
        assert_eq!(Tool::new(tool.clone()).unwrap_err().code, "tool.paths");
        tool.paths = vec!["file".to_owned()];
        assert!(Tool::new(tool).is_ok());
    }
}
