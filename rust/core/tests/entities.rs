//! The entity store against the reference: random graphs, sequences of updates, and the conformance corpus.
//!
//! `cargo test --release --test entities -- --ignored --nocapture` prints the measurements that the bounds rest on.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cedar_policy_core::ast;
use cedar_policy_core::entities::{Entities as CoreEntities, NoEntitiesSchema, TCComputation};
use cedar_policy_core::extensions::Extensions;
use proptest::prelude::*;
use tollkeeper_core::policy::entities::{
    Entities, EntityData, context_from_json, context_from_json_with_schema, read_json,
};
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::{Ip, Val};

fn uid(id: impl std::fmt::Display) -> Arc<EntityUid> {
    Arc::new(EntityUid::new("T", &id.to_string()))
}

fn entity(id: impl std::fmt::Display, parents: &[usize]) -> EntityData {
    let mut data = EntityData::new(uid(id));
    data.parents = parents.iter().map(uid).collect();
    data
}

fn core_uid(id: impl std::fmt::Display) -> ast::EntityUID {
    ast::EntityUID::with_eid_and_type("T", &id.to_string()).unwrap()
}

fn ancestors_of(entities: &Entities, uid: &EntityUid) -> BTreeSet<String> {
    entities.get(uid).unwrap().ancestors().map(ToString::to_string).collect()
}

fn code(result: Result<Entities, tollkeeper_core::policy::error::PolicyErrors>) -> &'static str {
    result.expect_err("refused").first().code
}

/// Everything that can be seen of a store.
type Seen = BTreeMap<String, (String, String, BTreeSet<String>, BTreeSet<String>)>;

fn seen(entities: &Entities) -> Seen {
    let all: Vec<_> = entities.iter().collect();
    assert_eq!(all.len(), entities.len());
    let seen: Seen = all
        .iter()
        .map(|entity| {
            let parents = entity.parents().map(ToString::to_string).collect();
            let ancestors = entity.ancestors().map(ToString::to_string).collect();
            let (attrs, tags) = (format!("{:?}", entity.attrs()), format!("{:?}", entity.tags()));
            (entity.uid().to_string(), (attrs, tags, parents, ancestors))
        })
        .collect();
    assert_eq!(seen.len(), all.len());
    seen
}

/// Lookups agree with what iteration shows, for every pair of the first `n` uids.
fn check_lookups(entities: &Entities, n: usize) {
    let seen = seen(entities);
    for a in 0..n {
        let shown = seen.get(&uid(a).to_string());
        let Some(entity) = entities.get(&uid(a)) else {
            assert!(shown.is_none());
            continue;
        };
        for b in 0..n {
            assert_eq!(entity.has_ancestor(&uid(b)), shown.unwrap().3.contains(&uid(b).to_string()));
        }
    }
}

fn core_from(graph: &[Option<Vec<usize>>]) -> Result<CoreEntities, String> {
    let entities = graph.iter().enumerate().filter_map(|(id, parents)| {
        let parents = parents.as_ref()?.iter().map(core_uid).collect();
        Some(ast::Entity::new_with_attr_partial_value(core_uid(id), [], HashSet::new(), parents, []))
    });
    CoreEntities::from_entities(
        entities,
        None::<&NoEntitiesSchema>,
        TCComputation::ComputeNow,
        Extensions::all_available(),
    )
    .map_err(|error| error.to_string())
}

fn data_from(graph: &[Option<Vec<usize>>]) -> Vec<EntityData> {
    graph.iter().enumerate().filter_map(|(id, parents)| Some(entity(id, parents.as_ref()?))).collect()
}

/// A graph of up to 14 uids; some do not exist. Half of the graphs only have edges to higher numbers, hence no cycle.
fn graphs() -> impl Strategy<Value = Vec<Option<Vec<usize>>>> {
    (1..14_usize, any::<bool>()).prop_flat_map(|(n, acyclic)| {
        let node = |id: usize| {
            let low = if acyclic { id + 1 } else { 0 };
            proptest::option::weighted(0.85, proptest::collection::vec(low..n + 2, 0..4))
        };
        (0..n).map(node).collect::<Vec<_>>()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn closure_and_acceptance_equal_the_reference(graph in graphs()) {
        match (core_from(&graph), Entities::from_data(data_from(&graph))) {
            (Ok(core), Ok(ours)) => {
                prop_assert_eq!(core.len(), ours.len());
                for theirs in core.iter() {
                    let id: &str = theirs.uid().eid().as_ref();
                    let expected: BTreeSet<String> = theirs.ancestors().map(ToString::to_string).collect();
                    prop_assert_eq!(ancestors_of(&ours, &uid(id)), expected);
                }
                check_lookups(&ours, 16);
            }
            (Err(_), Err(errors)) => prop_assert_eq!(errors.first().code, "entities.cycle"),
            (theirs, ours) => panic!("the reference says {:?}, we say {ours:?}", theirs.err()),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Update { upserts: Vec<(usize, Vec<usize>, i64)>, removals: Vec<usize> },
    Additional(Vec<(usize, Vec<usize>, i64)>),
    Compact,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let row = || (0..12_usize, proptest::collection::vec(0..12_usize, 0..3), 0..2_i64);
    // Edges mostly point to higher numbers, so that most steps are accepted.
    let row = move || {
        row().prop_map(|(id, parents, n)| (id, parents.into_iter().filter(|p| *p > id || *p == 0).collect(), n))
    };
    let step = prop_oneof![
        4 => (proptest::collection::vec(row(), 0..4), proptest::collection::vec(0..12_usize, 0..3))
            .prop_map(|(upserts, removals)| Step::Update { upserts, removals }),
        2 => proptest::collection::vec(row(), 0..3).prop_map(Step::Additional),
        1 => Just(Step::Compact),
    ];
    proptest::collection::vec(step, 1..12)
}

type Model = BTreeMap<usize, (BTreeSet<usize>, i64)>;

fn model_row((id, parents, n): &(usize, Vec<usize>, i64)) -> (usize, (BTreeSet<usize>, i64)) {
    (*id, (parents.iter().copied().collect(), *n))
}

fn row_data(id: usize, (parents, n): &(BTreeSet<usize>, i64)) -> EntityData {
    let mut data = entity(id, &parents.iter().copied().collect::<Vec<_>>());
    data.attrs.push(("n".into(), Val::Long(*n)));
    data
}

fn rows_data(rows: &[(usize, Vec<usize>, i64)]) -> Vec<EntityData> {
    rows.iter().map(model_row).map(|(id, row)| row_data(id, &row)).collect()
}

/// `None` if two different rows are given for one id (in `rows`, or against `model` where `keep` is set).
fn model_with(model: &Model, rows: &[(usize, Vec<usize>, i64)], keep: bool) -> Option<Model> {
    let mut given = if keep { model.clone() } else { Model::new() };
    for (id, row) in rows.iter().map(model_row) {
        if given.insert(id, row.clone()).is_some_and(|before| before != row) {
            return None;
        }
    }
    let mut all = model.clone();
    all.extend(given);
    Some(all)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_equal_rebuilding(steps in steps()) {
        let mut model = Model::new();
        let mut ours = Entities::empty();
        for step in steps {
            let (next_model, next) = match &step {
                Step::Update { upserts, removals } => {
                    let mut after = model.clone();
                    after.retain(|id, _| !removals.contains(id));
                    let removals: Vec<EntityUid> =
                        removals.iter().map(|id| EntityUid::new("T", &id.to_string())).collect();
                    (model_with(&after, upserts, false), ours.update(rows_data(upserts), &removals))
                }
                Step::Additional(rows) => (model_with(&model, rows, true), ours.with_additional(rows_data(rows))),
                Step::Compact => (Some(model.clone()), Ok(ours.compact())),
            };
            let rebuilt = next_model.clone().map(|model| {
                Entities::from_data(model.iter().map(|(id, row)| row_data(*id, row)).collect())
            });
            match (rebuilt, next) {
                (None, next) => prop_assert!(next.is_err()),
                (Some(Ok(rebuilt)), Ok(next)) => {
                    prop_assert_eq!(seen(&next), seen(&rebuilt));
                    check_lookups(&next, 12);
                    prop_assert_eq!(next.to_json().unwrap(), rebuilt.to_json().unwrap());
                    (model, ours) = (next_model.unwrap(), next);
                }
                (Some(Err(_)), Err(errors)) => prop_assert_eq!(errors.first().code, "entities.cycle"),
                (rebuilt, next) => panic!("rebuilding gives {rebuilt:?}, {step:?} gives {next:?}"),
            }
        }
    }
}

#[test]
fn a_removed_parent_stays_a_name() {
    let store = Entities::from_data(vec![entity(1, &[2]), entity(2, &[3]), entity(3, &[])]).unwrap();
    assert_eq!(ancestors_of(&store, &uid(1)).len(), 2);
    let without = store.update(Vec::new(), &[EntityUid::new("T", "2")]).unwrap();
    assert!(without.get(&uid(2)).is_none());
    assert!(without.get(&uid(1)).unwrap().has_ancestor(&uid(2)));
    assert!(!without.get(&uid(1)).unwrap().has_ancestor(&uid(3)));
    // The snapshot it was made from is untouched, and a later insertion reaches the descendants again.
    assert_eq!(ancestors_of(&store, &uid(1)).len(), 2);
    let again = without.update(vec![entity(2, &[4])], &[]).unwrap();
    assert!(again.get(&uid(1)).unwrap().has_ancestor(&uid(4)));
}

#[test]
fn additional_entities_close_dangling_parents() {
    let store = Entities::from_data(vec![entity(1, &[2])]).unwrap();
    let more = store.with_additional(vec![entity(2, &[3])]).unwrap();
    assert!(more.get(&uid(1)).unwrap().has_ancestor(&uid(3)));
    assert!(!store.get(&uid(1)).unwrap().has_ancestor(&uid(3)));
    assert_eq!(code(more.with_additional(vec![entity(2, &[4])])), "entities.duplicate");
    assert_eq!(code(more.with_additional(vec![entity(3, &[1])])), "entities.cycle");
}

#[test]
fn duplicates_and_cycles_are_named() {
    assert_eq!(Entities::from_data(vec![entity(1, &[2]), entity(1, &[2, 2])]).unwrap().len(), 1);
    assert_eq!(code(Entities::from_data(vec![entity(1, &[2]), entity(1, &[3])])), "entities.duplicate");
    let errors = Entities::from_data(vec![entity(1, &[1])]).unwrap_err();
    assert_eq!(errors.first().message, "entities form a cycle: T::\"1\" in T::\"1\"");
    let ring = (0..20).map(|id| entity(id, &[(id + 1) % 20])).collect();
    let message = Entities::from_data(ring).unwrap_err().first().message.clone();
    assert!(message.contains("14 more") && message.starts_with("entities form a cycle: T::\"0\" in T::\"1\""));
    let mut twice = EntityData::new(uid(1));
    twice.attrs = vec![("a".into(), Val::Long(1)), ("a".into(), Val::Long(1))];
    assert_eq!(code(Entities::from_data(vec![twice])), "entities.duplicate");
}

#[test]
fn closure_is_bounded() {
    // A chain as long as a store closes to billions of pairs; without overflowing a thread's stack it is refused.
    let chain = (0..100_000).map(|id| entity(id, &[id + 1])).collect();
    assert_eq!(code(Entities::from_data(chain)), "entities.too_large");
    let wide: Vec<usize> = (1..100_001).collect();
    let store = Entities::from_data(vec![entity(0, &wide)]).unwrap();
    assert_eq!(store.get(&uid(0)).unwrap().ancestors().count(), 100_000);
    assert!(store.get(&uid(0)).unwrap().has_ancestor(&uid(77_777)));
    assert!(!store.get(&uid(0)).unwrap().has_ancestor(&uid(0)));
    let ring = (0..100_000).map(|id| entity(id, &[(id + 1) % 100_000])).collect();
    assert_eq!(code(Entities::from_data(ring)), "entities.cycle");
}

const ALL_KINDS: &str = r#"[{"uid":{"__entity":{"type":"Ns::U","id":"a\"\u0000"}},"parents":[{"type":"G","id":""}],"attrs":{
    "long":-9223372036854775808,"bool":true,"text":"é\n","entity":{"__entity":{"type":"T","id":"1"}},
    "half":{"__extn":{"fn":"decimal","arg":"-0.5"}},"least":{"__extn":{"fn":"decimal","arg":"-922337203685477.5808"}},
    "at":{"__extn":{"fn":"datetime","arg":"1969-12-31T23:59:59.999Z"}},
    "far":{"__extn":{"fn":"offset","args":[{"__extn":{"fn":"datetime","arg":"1970-01-01"}},
        {"__extn":{"fn":"duration","arg":"-9223372036854775808ms"}}]}},
    "span":{"__extn":{"fn":"duration","arg":"1d2h3m4s5ms"}},
    "net":{"__extn":{"fn":"ip","arg":"10.0.0.1/8"}},"mapped":{"__extn":{"fn":"ip","arg":"::ffff:102:304"}},
    "set":[2,1,2,[1],{"b":1,"a":[]}],"record":{"__entity":5,"z":1,"a":{"type":"T","id":"x"}}},
    "tags":{"t":[{"__entity":{"type":"T","id":"1"}}]}}]"#;

#[test]
fn every_kind_is_read_and_written_back() {
    let store = Entities::from_json(ALL_KINDS, None).unwrap();
    let entity = store.get(&EntityUid::new("Ns::U", "a\"\0")).unwrap();
    assert_eq!(entity.attr("half"), Some(&Val::Decimal(-5_000)));
    assert_eq!(entity.attr("least"), Some(&Val::Decimal(i64::MIN)));
    assert_eq!(entity.attr("at"), Some(&Val::Datetime(-1)));
    assert_eq!(entity.attr("far"), Some(&Val::Datetime(i64::MIN)));
    assert_eq!(entity.attr("span"), Some(&Val::Duration(93_784_005)));
    let mapped = Ip { addr: "::ffff:1.2.3.4".parse().unwrap(), prefix: 128 };
    assert_eq!(entity.attr("mapped"), Some(&Val::Ip(Box::new(mapped))));
    assert_eq!(entity.attr("nothing"), None);
    assert_eq!(entity.tag("t"), Some(&Val::set(vec![Val::Entity(uid(1))])));
    assert!(entity.has_ancestor(&EntityUid::new("G", "")));
    same_as_reference(ALL_KINDS, None);
}

/// Reads a document both ways: same acceptance, and the same entities. What we read is written and read back by the
/// reference, which then compares entity by entity.
fn same_as_reference(text: &str, schema: Option<&cedar_policy::Schema>) -> bool {
    let theirs = cedar_policy::Entities::from_json_str(text, schema);
    let ours = Entities::from_json(text, schema);
    let (theirs, ours) = match (theirs, ours) {
        (Ok(theirs), Ok(ours)) => (theirs, ours),
        (Err(_), Err(_)) => return false,
        (theirs, ours) => panic!("the reference says {:?}, we say {:?} to {text}", theirs.err(), ours.err()),
    };
    let theirs: &CoreEntities = theirs.as_ref();
    let written = ours.to_json().unwrap().to_string();
    let read_back = cedar_policy::Entities::from_json_str(&written, None).unwrap();
    assert!(theirs.deep_eq(read_back.as_ref()), "{written}");
    assert_eq!(theirs.len(), ours.len());
    for entity in theirs.iter() {
        let uid = EntityUid::new(&entity.uid().entity_type().to_string(), entity.uid().eid().as_ref());
        let expected: BTreeSet<String> = entity
            .ancestors()
            .map(|uid| EntityUid::new(&uid.entity_type().to_string(), uid.eid().as_ref()).to_string())
            .collect();
        assert_eq!(ancestors_of(&ours, &uid), expected);
    }
    true
}

const SCHEMA: &str = r#"
    entity G;
    entity U in [G] { owner?: U, at?: datetime, net: Set<ipaddr>, name: String } tags decimal;
    entity E enum ["one", "two"];
    action all;
    action some in [all];
    action view in [some] appliesTo { principal: U, resource: G, context: { who: U, n?: Long } };
"#;

fn schema() -> cedar_policy::Schema {
    cedar_policy::Schema::from_cedarschema_str(SCHEMA).unwrap().0
}

#[test]
fn schema_directs_the_reading() {
    let schema = schema();
    let user = |rest: &str| format!(r#"{{"uid":{{"type":"U","id":"a"}},"parents":[],{rest}}}"#);
    let good = user(
        r#""attrs":{"owner":{"type":"U","id":"b"},"at":"2020-01-01","net":["::1",{"fn":"ip","arg":"1.2.3.4/8"}],"name":"x"},
        "tags":{"t":"1.5"}"#,
    );
    let action = |id: &str, parents: &str| {
        format!(r#"{{"uid":{{"type":"Action","id":"{id}"}},"parents":[{parents}],"attrs":{{}}}}"#)
    };
    let (all, some) = (r#"{"type":"Action","id":"all"}"#, r#"{"type":"Action","id":"some"}"#);
    let accepted = [
        "[]".to_owned(),
        format!("[{good}]"),
        format!("[{good},{good}]"),
        // Closed through the document, or as written.
        format!("[{},{}]", action("view", some), action("some", all)),
        format!("[{good},{}]", action("view", &format!("{some},{all}"))),
        format!("[{}]", action("all", "")),
    ];
    for text in &accepted {
        assert!(same_as_reference(text, Some(&schema)), "{text}");
    }
    let store = Entities::from_json(&accepted[1], Some(&schema)).unwrap();
    assert_eq!(store.get(&EntityUid::new("U", "a")).unwrap().tag("t"), Some(&Val::Decimal(15_000)));
    assert!(store.get(&EntityUid::new("Action", "view")).unwrap().has_ancestor(&EntityUid::new("Action", "all")));
    let refused = [
        format!("[{}]", action("view", some)),
        format!("[{}]", action("other", "")),
        format!("[{},{}]", action("all", some), action("some", all)),
        format!("[{}]", user(r#""attrs":{"net":[],"name":5}"#)),
        format!("[{}]", user(r#""attrs":{"net":[]}"#)),
        format!("[{}]", user(r#""attrs":{"net":[],"name":"x","more":1}"#)),
        format!("[{}]", user(r#""attrs":{"net":["secret"],"name":"x"}"#)),
        format!("[{},{good}]", user(r#""attrs":{"net":[],"name":"x"}"#)),
        r#"[{"uid":{"type":"E","id":"three"},"attrs":{},"parents":[]}]"#.to_owned(),
        r#"[{"uid":{"type":"X","id":""},"attrs":{},"parents":[]}]"#.to_owned(),
        r#"[{"uid":{"type":"G","id":""},"attrs":{},"parents":[{"type":"U","id":"a"}]}]"#.to_owned(),
        r#"[{"uid":{"type":"G","id":""},"attrs":{},"parents":[{"type":"Action","id":"all"}]}]"#.to_owned(),
    ];
    for text in &refused {
        assert!(!same_as_reference(text, Some(&schema)), "{text}");
    }
}

#[test]
fn errors_hold_no_values() {
    let schema = schema();
    let attrs = |attrs: &str| format!(r#"[{{"uid":{{"type":"U","id":"a"}},"parents":[],"attrs":{{{attrs}}}}}]"#);
    let texts = [
        (attrs(r#""name":"x","net":"hush""#), true),
        (attrs(r#""name":["hush"],"net":[]"#), true),
        (attrs(r#""name":"x","net":[{"fn":"ip","arg":"hush"}]"#), true),
        (attrs(r#""name":"x","net":[],"owner":"hush""#), true),
        (attrs(r#""name":"x","net":[],"at":"hush""#), true),
        (attrs(r#""d":{"__extn":{"fn":"decimal","arg":"hush"}}"#), false),
        (attrs(r#""d":{"__extn":{"fn":"hu sh","arg":"hush"}}"#), false),
        (attrs(r#""d":{"__entity":{"type":"hush !","id":"hush"}}"#), false),
        (attrs(r#""d":{"__extn":{"fn":"ip","arg":["hush"]}}"#), false),
        (attrs(r#""d":{"__extn":{"fn":"unknown","arg":"hush"}}"#), false),
        (attrs(r#""d":{"__expr":"hush"}"#), false),
        (attrs(r#""d":["hush", 1.5]"#), false),
        (attrs(r#""d":["hush", null]"#), false),
        (r#"[{"uid":{"type":"U","id":"a"},"parents":"hush","attrs":{}}]"#.to_owned(), false),
        (r#"[{"uid":{"type":"U","id":"a"},"parents":["hush"],"attrs":{}}]"#.to_owned(), false),
        (r#"[{"uid":{"type":"U","id":"a"},"parents":[],"attrs":"hush \" , expected hush"}]"#.to_owned(), false),
        ("[{\"uid\":\"hush\"}]".to_owned(), false),
        ("{\"hush\":1}".to_owned(), false),
        (" \"hush\"".to_owned(), false),
    ];
    for (text, with_schema) in &texts {
        let errors = Entities::from_json(text, with_schema.then_some(&schema)).expect_err(text);
        let shown = format!("{errors} {errors:?}");
        assert!(!shown.contains("hush"), "{text}: {shown}");
        println!("{}", errors.first().message);
    }
    let broken = Entities::from_json("[\n  {\"uid\": 5,,}]", None).unwrap_err();
    assert_eq!((broken.first().code, broken.first().line), ("entities.syntax", 2));
}

#[test]
fn contexts_are_read_as_the_reference_does() {
    let context = context_from_json(r#"{"a":{"__entity":{"type":"T","id":"1"}},"b":[1,1],"c":{"type":"T"}}"#).unwrap();
    let expected = Val::record(vec![
        ("a".into(), Val::Entity(uid(1))),
        ("b".into(), Val::set(vec![Val::Long(1)])),
        ("c".into(), Val::record(vec![("type".into(), Val::Str("T".into()))])),
    ]);
    assert_eq!(context, expected);
    for text in ["[]", "{\"a\":null}", "{\"a\":1.5}", "5", "{", "{\"a\":{\"__extn\":{\"fn\":\"ip\",\"arg\":\"hush\"}}}"]
    {
        let errors = context_from_json(text).expect_err(text);
        assert_eq!(errors.first().code, "context.syntax");
        assert!(!errors.to_string().contains("hush"), "{errors}");
    }
    let (schema, view) = (schema(), EntityUid::new("Action", "view"));
    let context = context_from_json_with_schema(r#"{"who":{"type":"U","id":"a"}}"#, &schema, &view).unwrap();
    assert_eq!(context, Val::record(vec![("who".into(), Val::Entity(Arc::new(EntityUid::new("U", "a"))))]));
    assert!(context_from_json_with_schema("{}", &schema, &view).is_err());
    assert!(context_from_json_with_schema("{}", &schema, &EntityUid::new("Action", "none")).is_err());
}

#[test]
fn documents_are_bounded() {
    for (depth, code) in [(65, "entities.too_deep"), (1_000_000, "entities.too_deep")] {
        let lists = format!("{}\"hush\"{}", "[".repeat(depth), "]".repeat(depth));
        let text = format!(r#"[{{"uid":{{"type":"T","id":"1"}},"parents":[],"attrs":{{"a":{lists}}}}}]"#);
        let errors = Entities::from_json(&text, None).unwrap_err();
        assert_eq!(errors.first().code, code);
        assert!(!errors.to_string().contains("hush"));
        let errors = context_from_json(&lists).unwrap_err();
        assert_eq!(errors.first().code, "context.too_deep");
    }
    let large = format!("[{}]", " ".repeat(4 << 20));
    assert_eq!(context_from_json(&large).unwrap_err().first().code, "context.too_large");
}

#[test]
fn snapshots_are_shared_between_threads() {
    fn assert_shared<T: Send + Sync + Clone>() {}
    assert_shared::<Entities>();
    let mut store = Entities::from_data((0..10_000).map(|id| entity(id, &[])).collect()).unwrap();
    assert!(!store.needs_compaction());
    store = store.update((0..5_000).map(|id| entity(id, &[20_000])).collect(), &[]).unwrap();
    assert!(store.needs_compaction());
    let compacted = store.compact();
    assert!(!compacted.needs_compaction() && compacted.memory_bytes() < store.memory_bytes());
    assert_eq!(seen(&store), seen(&compacted));
}

fn corpus_lines(file: &str) -> Option<Vec<serde_json::Value>> {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/cedar");
    let folder = std::env::var_os("TOLLKEEPER_CEDAR_CORPUS").map_or(default, PathBuf::from);
    let path = folder.join(file);
    let Ok(bytes) = std::fs::read(&path) else {
        println!("skipped: no conformance corpus at {}", path.display());
        return None;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*bytes).read_to_string(&mut text).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn corpus_entities_equal_the_reference() {
    let (mut read, mut refused, mut contexts) = (0, 0, 0);
    for file in ["corpus.jsonl.gz", "handwritten.jsonl.gz"] {
        let Some(lines) = corpus_lines(file) else { return };
        let mut done = HashSet::new();
        for line in &lines {
            let entities = line["entities"].to_string();
            let schema_text = line["schema"].as_str().unwrap();
            if !done.insert((entities.clone(), schema_text.to_owned())) {
                continue;
            }
            let schema = cedar_policy::Schema::from_cedarschema_str(schema_text).ok().map(|(schema, _)| schema);
            for schema in [None, schema.as_ref()] {
                if same_as_reference(&entities, schema) { read += 1 } else { refused += 1 }
            }
            for request in line["requests"].as_array().unwrap() {
                let text = request["context"].to_string();
                if done.insert((text.clone(), String::new())) {
                    let theirs = cedar_policy::Context::from_json_str(&text, None);
                    assert_eq!(theirs.is_ok(), context_from_json(&text).is_ok(), "{text}");
                    contexts += 1;
                }
            }
        }
    }
    println!("{read} entities documents equal, {refused} refused by both, {contexts} contexts");
}

/// `n` users in teams in organisations, each with a few attributes, as Cedar JSON.
fn users_json(n: usize) -> String {
    let mut text = String::from("[");
    for id in 0..n {
        let (team, organisation) = (id % (n / 20).max(1), id % 50);
        write!(
            text,
            r#"{{"uid":{{"type":"User","id":"user-{id}"}},"parents":[{{"type":"Team","id":"{team}"}},{{"type":"Team","id":"x{organisation}"}}],"attrs":{{"name":"user number {id}","level":{id},"manager":{{"__entity":{{"type":"User","id":"user-{}"}}}}}}}},"#,
            id / 10
        )
        .unwrap();
    }
    for team in 0..(n / 20).max(1) {
        write!(
            text,
            r#"{{"uid":{{"type":"Team","id":"{team}"}},"parents":[{{"type":"Org","id":"{}"}}],"attrs":{{}}}},"#,
            team % 50
        )
        .unwrap();
    }
    text.pop();
    text.push(']');
    text
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    println!("{what}: {:.3} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

#[expect(clippy::cast_precision_loss, reason = "a printed ratio")]
fn per_call(what: &str, calls: usize, run: impl FnOnce() -> usize) {
    let start = Instant::now();
    let sum = std::hint::black_box(run());
    println!("{what}: {:.1} ns ({sum})", start.elapsed().as_secs_f64() * 1e9 / calls as f64);
}

#[test]
#[ignore = "prints measurements; run it alone and optimised"]
fn measure() {
    let text = users_json(100_000);
    println!("document: {} MB", text.len() >> 20);
    let data = timed("read 105,000 entities from JSON", || read_json(&text, None).unwrap());
    let copy = data.clone();
    let store = timed("build and close", || Entities::from_data(copy).unwrap());
    timed("the reference, JSON to closed store", || cedar_policy::Entities::from_json_str(&text, None).unwrap());
    println!("{} bytes per entity", store.memory_bytes() / store.len());

    let (uids, org): (Vec<_>, _) =
        (data.iter().map(|data| Arc::clone(&data.uid)).collect(), EntityUid::new("Org", "7"));
    let probes: Vec<EntityUid> =
        (0..1_000_000).map(|i| &uids[i * 7_919 % uids.len()]).map(|uid| EntityUid::new(uid.ty(), uid.id())).collect();
    per_call("get, spread over the store", probes.len(), || {
        probes.iter().filter(|uid| store.get(uid).is_some()).count()
    });
    per_call("get, the same thousand", 1_000_000, || {
        (0..1_000).map(|_| probes[..1_000].iter().filter(|uid| store.get(uid).is_some()).count()).sum()
    });
    let some: Vec<_> = probes[..1_000].iter().filter_map(|uid| store.get(uid)).collect();
    per_call("has_ancestor (3 ancestors), the same thousand", 1_000 * some.len(), || {
        (0..1_000).map(|_| some.iter().filter(|entity| entity.has_ancestor(&org)).count()).sum()
    });
    per_call("attr, the same thousand", 1_000 * some.len(), || {
        (0..1_000).map(|_| some.iter().filter(|entity| entity.attr("manager").is_some()).count()).sum()
    });
    let many = Entities::from_data(vec![entity(0, &(1..1_000).collect::<Vec<_>>())]).unwrap();
    let targets: Vec<_> = (0..2_000).map(uid).collect();
    let zero = many.get(&uid(0)).unwrap();
    per_call("has_ancestor (1,000 ancestors)", 200_000, || {
        (0..100).map(|_| targets.iter().filter(|uid| zero.has_ancestor(uid)).count()).sum()
    });

    let mut layered = store.clone();
    let fresh = |id: usize| {
        let mut data = EntityData::new(EntityUid::new("User", &format!("user-{id}")));
        data.parents.push(Arc::new(EntityUid::new("Team", "3")));
        data
    };
    for round in 0..3 {
        layered =
            timed("update of one entity without descendants", || layered.update(vec![fresh(round)], &[]).unwrap());
    }
    timed("update of a team with 20 members", || {
        let mut team = EntityData::new(EntityUid::new("Team", "3"));
        team.parents.push(Arc::new(EntityUid::new("Org", "new")));
        layered.update(vec![team], &[]).unwrap()
    });
    timed("update of a team with 2,000 members", || {
        let mut team = EntityData::new(EntityUid::new("Team", "x3"));
        team.parents.push(Arc::new(EntityUid::new("Org", "new")));
        layered.update(vec![team], &[]).unwrap()
    });
    let full = timed("update of 4,000 entities", || layered.update((0..4_000).map(fresh).collect(), &[]).unwrap());
    timed("update of one entity over a delta of 4,000", || full.update(vec![fresh(5)], &[]).unwrap());
    let with = timed("two additional entities", || full.with_additional(vec![fresh(200_000), fresh(200_001)]).unwrap());
    per_call("get through three layers, the same thousand", 1_000_000, || {
        (0..1_000).map(|_| probes[..1_000].iter().filter(|uid| with.get(uid).is_some()).count()).sum()
    });
    timed("compact", || with.compact());
    hostile();
}

fn hostile() {
    let chain = (0..100_000).map(|id| entity(id, &[id + 1])).collect();
    timed("a chain of 100,000 (refused)", || Entities::from_data(chain).unwrap_err());
    let chain = (0..10_000).map(|id| entity(id, &[id + 1])).collect();
    timed("a chain of 10,000 (50 million pairs)", || Entities::from_data(chain).unwrap());
    let ring = (0..100_000).map(|id| entity(id, &[(id + 1) % 100_000])).collect();
    timed("a ring of 100,000 (refused)", || Entities::from_data(ring).unwrap_err());
    timed("one entity with 100,000 parents", || {
        Entities::from_data(vec![entity(0, &(1..100_001).collect::<Vec<_>>())]).unwrap()
    });
    // Siblings that know the same 5,000 ancestors: through one parent, or (few pairs, many steps) through two each that
    // no other sibling has.
    for own in [0, 2] {
        let mut web: Vec<EntityData> = (0..5_000).map(|id| entity(id, &[id + 1])).collect();
        for id in 0..900 {
            let parents: Vec<usize> = if own == 0 { vec![0] } else { vec![30_000 + id, 40_000 + id] };
            web.extend(parents.iter().filter(|_| own > 0).map(|parent| entity(parent, &[0])));
            web.push(entity(10_000 + id, &parents));
        }
        let siblings: Vec<usize> = (10_000..10_900).collect();
        web.extend((20_000..23_000).map(|id| entity(id, &siblings)));
        let result = timed(&format!("a web of siblings with {own} parents of their own"), || Entities::from_data(web));
        println!("  {}", result.err().map_or_else(|| "accepted".to_owned(), |errors| errors.to_string()));
    }

    let head = r#"[{"uid":{"type":"T","id":"1"},"parents":[],"attrs":{"a":"#;
    let numbers: Vec<String> = (0..1_000_000_u64).map(|i| (i * 7_919 % 1_000_003).to_string()).collect();
    let set = format!("{head}[{}]}}}}]", numbers.join(","));
    timed("a set of 1,000,000 numbers", || Entities::from_json(&set, None).unwrap());
    let parents: Vec<String> = (0..100_000).map(|i| format!(r#"{{"type":"T","id":"p{i}"}}"#)).collect();
    let parents = format!(r#"[{{"uid":{{"type":"T","id":"1"}},"parents":[{}],"attrs":{{}}}}]"#, parents.join(","));
    timed("100,000 parents in JSON", || Entities::from_json(&parents, None).unwrap());
    for depth in [60, 120, 100_000] {
        let deep = format!("{head}{}{}}}}}]", "[".repeat(depth), "]".repeat(depth));
        let result = timed(&format!("{depth} nested lists"), || Entities::from_json(&deep, None));
        println!("  {}", result.err().map_or_else(|| "accepted".to_owned(), |errors| errors.to_string()));
    }
    let mut nested = String::from("1");
    for _ in 0..14 {
        nested = format!(r#"{{"__extn":{{"fn":"ip","arg":{nested}}}}}"#);
    }
    let nested = format!("{head}{nested}}}}}]");
    timed("nested extension escapes", || Entities::from_json(&nested, None).unwrap_err());
}
