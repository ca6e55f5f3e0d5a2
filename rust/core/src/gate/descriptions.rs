//! Which description of a tool counts, where a file and a runtime both have one.
//!
//! What the configuration says of a tool stands, whatever a runtime says of one with that name; only a schema that the
//! file leaves out is taken from the runtime. Of a tool that the configuration does not name the runtime says
//! everything, and what it said last. A call never says what a tool is.

use std::collections::HashMap;
use std::sync::Arc;

use super::names;
use super::tools::{Registry, Tool, ToolSpec};
use crate::policy::error::{PolicyError, PolicyErrors};

/// What a registry is made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Descriptions {
    /// As the file has them
    configured: Arc<[Arc<Tool>]>,
    /// As runtimes have them, one of a name, in the order in which they came
    by_runtime: Vec<Arc<Tool>>,
}

impl Descriptions {
    /// Those of a configuration, and what runtimes had described before.
    pub(super) fn load(configured: &[ToolSpec], before: Option<&Self>) -> Result<Self, PolicyErrors> {
        let configured = configured.iter().map(|spec| Tool::new(spec.clone()).map(Arc::new));
        let by_runtime = before.map_or_else(Vec::new, |before| before.by_runtime.clone());
        Ok(Self { configured: configured.collect::<Result<_, _>>()?, by_runtime })
    }

    /// The same with what a runtime describes now: all of it, or an error. `None` if all of it is known.
    pub(super) fn with(&self, specs: &[ToolSpec]) -> Result<Option<Self>, PolicyErrors> {
        let configured: HashMap<&str, &Tool> = self.configured.iter().map(|tool| (tool.name(), &**tool)).collect();
        let places = self.by_runtime.iter().enumerate().map(|(place, tool)| (tool.name().to_owned(), place));
        let mut places: HashMap<String, usize> = places.collect();
        let mut by_runtime = self.by_runtime.clone();
        let (mut seen, mut changed) = (HashMap::<&str, Arc<Tool>>::new(), false);
        for spec in specs {
            if spec.schema.is_none() && configured.contains_key(&*spec.name) {
                // There is nothing to take over, and a schema that was is not taken back.
                continue;
            }
            let made = match (Tool::new(spec.clone()), configured.get(&*spec.name)) {
                (Ok(tool), _) => Arc::new(tool),
                // The file has a schema, often because nothing can be read off the runtime's.
                (Err(_), Some(own)) if own.schema().is_some() => continue,
                (Err(error), _) => return Err(error.into()),
            };
            if let Some(other) = seen.insert(&spec.name, Arc::clone(&made)) {
                if !other.is_same(&made) {
                    let message = format!("tool `{}` is described twice, in two ways", names::shown(&spec.name));
                    return Err(PolicyError::new("tool.name", message).into());
                }
                continue;
            }
            match places.get(&spec.name).and_then(|place| by_runtime.get_mut(*place)) {
                Some(known) if known.is_same(&made) => continue,
                Some(known) => *known = made,
                None => {
                    places.insert(spec.name.clone(), by_runtime.len());
                    by_runtime.push(made);
                }
            }
            changed = true;
        }
        Ok(changed.then(|| Self { configured: Arc::clone(&self.configured), by_runtime }))
    }

    /// The tools that follow from it. Those that are as `before` had them are the same objects.
    pub(super) fn registry(&self, before: Option<&Registry>) -> Result<Registry, PolicyErrors> {
        let by_runtime: HashMap<&str, &Arc<Tool>> = self.by_runtime.iter().map(|tool| (tool.name(), tool)).collect();
        let mut tools = Vec::with_capacity(self.configured.len().saturating_add(self.by_runtime.len()));
        for own in &*self.configured {
            let described = by_runtime.get(own.name()).filter(|described| described.schema().is_some());
            tools.push(match described.filter(|_| own.schema().is_none()) {
                None => Arc::clone(own),
                Some(described) => {
                    let spec = ToolSpec { schema: described.spec().schema.clone(), ..own.spec().clone() };
                    let adopted = Tool::new(spec)?;
                    let known = before.and_then(|before| before.shared(own.name()));
                    known.filter(|known| known.is_same(&adopted)).map_or_else(|| Arc::new(adopted), Arc::clone)
                }
            });
        }
        let names: std::collections::HashSet<&str> = self.configured.iter().map(|tool| tool.name()).collect();
        tools.extend(self.by_runtime.iter().filter(|tool| !names.contains(tool.name())).map(Arc::clone));
        Registry::new(tools)
    }

    /// The tools of a registry that no file describes, but for those that `before` has too.
    pub(super) fn beside_files<'r>(
        &self,
        registry: &'r Registry,
        before: Option<&Registry>,
    ) -> impl Iterator<Item = &'r Arc<Tool>> {
        // Those of the files come first, in their order.
        registry.tools().iter().enumerate().filter_map(move |(place, tool)| {
            let as_configured = self.configured.get(place).is_some_and(|own| Arc::ptr_eq(own, tool));
            let known = before.and_then(|before| before.shared(tool.name())).is_some_and(|old| Arc::ptr_eq(old, tool));
            (!as_configured && !known).then_some(tool)
        })
    }
}
