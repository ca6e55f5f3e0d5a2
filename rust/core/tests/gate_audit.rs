//! The gate's third step: every decision is in the log, with what it was made of, and nothing is allowed that is not.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use serde_json::{Value as Json, json};
use tollkeeper_core::arguments::Arguments;
use tollkeeper_core::audit::disk::{Disk, Fault, Operation};
use tollkeeper_core::audit::log::{Durability, Log, LogOptions};
use tollkeeper_core::audit::tree::commitment;
use tollkeeper_core::budget::clock::SystemClock;
use tollkeeper_core::budget::ledger::Ledger;
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::asserted::Asserted;
use tollkeeper_core::gate::check::Scratch;
use tollkeeper_core::gate::code::Code;
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::gate::evidence::{Audit, Ending, Links, OnFull, Status};
use tollkeeper_core::gate::model_call::ModelRequest;
use tollkeeper_core::gate::scope::{Narrow, Scope, ScopeSpec};
use tollkeeper_core::gate::state::{GateMode, GateSources};
use tollkeeper_core::gate::tools::ToolSpec;
use tollkeeper_core::policy::entities::EntityData;
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::Val;

const POLICIES: &str = r#"
@id("all") @obligation("tell \"ops\"") permit(principal, action, resource) when { context.input has n && context.input.n < 5 };
@id("no-secrets") forbid(principal, action, resource) when { context.session.labels.contains("secret") };
@id("careful") @durability("sync") permit(principal, action == Action::"wipe", resource);
@id("models") permit(principal, action == Action::"call_model", resource) when { context.budget.tokens.total.tightest.remaining > 10 };
"#;

struct Case {
    folder: PathBuf,
    gate: Gate,
    log: Arc<Log>,
    ledger: Arc<Ledger>,
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("tollkeeper-gate-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

fn tool(name: &str) -> ToolSpec {
    ToolSpec {
        name: name.to_owned(),
        resource: Arc::new(EntityUid::new("Mcp", "m0")),
        schema: None,
        paths: Vec::new(),
        cost: Some(Amounts::of(Unit::Tokens, 10)),
        reads: Vec::new(),
    }
}

fn ledger() -> Arc<Ledger> {
    let limits = vec![LimitSpec { unit: Unit::Tokens, window: Window::Total, limit: 100, overdraft: 0 }];
    let budget = BudgetSpec { path: "acme".to_owned(), limits, children_max: None };
    let spec = LedgerSpec { budgets: vec![budget], holds: 64, ..LedgerSpec::default() };
    Arc::new(Ledger::anonymous(spec, Arc::new(SystemClock)).unwrap())
}

fn case(name: &str, mode: GateMode, on_full: OnFull, disk: Disk) -> Case {
    let folder = folder(name);
    let options = LogOptions { disk, ring_bytes: 512 << 10, ..LogOptions::new("example.com/gate", 7) };
    let log = Arc::new(Log::open(&folder, options).unwrap());
    let ledger = ledger();
    let audit = Audit { log: Arc::clone(&log), on_full, durability: Durability::Group };
    let sources = GateSources {
        policies: vec![Source { name: Some("p.cedar"), text: POLICIES }],
        tools: vec![tool("send"), tool("wipe")],
        mode,
        ledger: Some(Arc::clone(&ledger)),
        audit: Some(Arc::new(audit)),
        ..GateSources::default()
    };
    let gate = Gate::open(&sources, 7).unwrap();
    Case { folder, gate, log, ledger }
}

impl Case {
    fn scope(&self, labels: &[&str]) -> Scope {
        let mut principal = EntityData::new(EntityUid::new("Agent", "a\"1"));
        principal.attrs.push(("level".into(), Val::Long(3)));
        let spec = ScopeSpec {
            principal,
            session: "s-1".to_owned(),
            on_behalf_of: Some(EntityUid::new("User", "u")),
            narrow: Narrow {
                labels: labels.iter().map(|label| (*label).to_owned()).collect(),
                budget: Some("acme".to_owned()),
                ..Narrow::default()
            },
        };
        Scope::new(spec, &self.gate.state(), self.gate.now_ms()).unwrap()
    }

    fn check(&self, scope: &Scope, tool: &str, n: i64, links: Links<'_>) -> Decision {
        let mut arguments = Arguments::new();
        arguments.open_object(None).unwrap();
        arguments.push_long(Some("n"), n).unwrap();
        arguments.push_str(Some("text"), "priv\"ate\n").unwrap();
        arguments.close();
        let now = self.gate.now_ms();
        self.gate.check_linked(Some(scope), tool, &mut arguments, now, links, &mut Scratch::new())
    }

    /// Closes the log and reads its entries.
    fn entries(&self) -> Vec<Json> {
        self.log.close().unwrap();
        entries(&self.folder)
    }
}

fn entries(folder: &Path) -> Vec<Json> {
    let mut all = Vec::new();
    for index in 0.. {
        let bundles = folder.join("tile/entries");
        let full = bundles.join(format!("{index:03}"));
        let partial = std::fs::read_dir(bundles.join(format!("{index:03}.p"))).ok();
        // What a write that failed has left has no number for a name.
        let number = |name: &std::ffi::OsStr| name.to_str()?.parse::<u32>().ok();
        let listed = partial.into_iter().flatten().flatten();
        let widest = listed
            .filter_map(|entry| Some((number(&entry.file_name())?, entry)))
            .max_by_key(|(width, _)| *width)
            .map(|(_, entry)| entry);
        let Some(path) = (if full.exists() { Some(full) } else { widest.map(|entry| entry.path()) }) else { break };
        let bytes = std::fs::read(path).unwrap();
        let mut rest = &bytes[..];
        while let Some((len, after)) = rest.split_first_chunk::<2>() {
            let (entry, after) = after.split_at(u16::from_be_bytes(*len).into());
            all.push(serde_json::from_slice(entry).unwrap());
            rest = after;
        }
    }
    all
}

fn of_kind<'e>(entries: &'e [Json], kind: &str) -> Vec<&'e Json> {
    entries.iter().filter(|entry| entry["kind"] == kind).collect()
}

fn keys(entry: &Json, text: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(text).unwrap();
    let mut keys: Vec<(usize, String)> = entry
        .as_object()
        .unwrap()
        .keys()
        .map(|key| (text.find(&format!("\"{key}\":")).unwrap(), key.clone()))
        .collect();
    keys.sort();
    keys.into_iter().map(|(_, key)| key).collect()
}

#[test]
fn a_decision_says_what_it_was_made_of() {
    let case = case("says", GateMode::Enforce, OnFull::Deny, Disk::default());
    let run = case.scope(&["pii"]).as_run(case.gate.next_run(), Some([9; 32]));
    let trace = Some((0xabcd, 0x12));
    let asserted = Arc::new(Asserted::new([("call", "c-1"), ("runtime", "maf")]).unwrap().unwrap());
    let links = Links { parent: Some("0000000000000007-9"), trace, asserted: Some(&asserted) };
    let allowed = case.check(&run, "send", 1, links);
    assert!(allowed.allowed(), "{}", allowed.reason());
    let ending = Ending {
        status: Status::Error,
        error: Some("TimeoutError"),
        usage: &[("tokens", 7)],
        duration_ms: Some(5),
        trace,
    };
    assert!(allowed.record_outcome(&ending, case.gate.now_ms()).unwrap());
    assert!(!allowed.record_outcome(&ending, case.gate.now_ms()).unwrap(), "once");
    let denied = case.check(&run, "send", 9, Links::default());
    let unknown = case.check(&run, "sned", 1, Links::default());
    let entries = case.entries();
    let decisions = of_kind(&entries, "decision");
    let first = decisions[0];
    let digest = first["policies"]["all"].as_str().unwrap();
    assert_eq!(digest.len(), 44);
    assert_eq!(first["id"], allowed.id().to_string());
    assert_eq!(first["principal"], "Agent::\"a\\\"1\"");
    assert_eq!(
        (&first["on_behalf_of"], &first["session"], &first["run"]),
        (&json!("User::\"u\""), &json!("s-1"), &json!("r1"))
    );
    assert_eq!(first["request"], "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=");
    assert_eq!(first["parent"], "0000000000000007-9");
    assert_eq!(first["asserted"].to_string(), r#"{"runtime":"maf","call":"c-1"}"#);
    assert_eq!(allowed.asserted().collect::<Vec<_>>(), [("runtime", "maf"), ("call", "c-1")]);
    assert!(denied.asserted().next().is_none());
    assert_eq!((&first["action"], &first["resource"]), (&json!("Action::\"send\""), &json!("Mcp::\"m0\"")));
    assert_eq!(
        (&first["decision"], &first["code"], &first["mode"]),
        (&json!("allow"), &json!("allow"), &json!("enforce"))
    );
    assert_eq!(first["obligations"], json!(["tell \"ops\""]));
    assert_eq!(first["labels"], json!(["pii"]));
    assert_eq!(first["budget"], json!({"path": "acme", "reserved": {"tokens": 10}, "remaining": {"tokens": 90}}));
    assert_eq!(first["budget_seen"]["tokens"]["total"]["tightest"]["remaining"], 100);
    assert_eq!(first["trace"], json!({"trace_id": format!("{:032x}", 0xabcd), "span_id": format!("{:016x}", 0x12)}));
    let expected: Vec<&str> = "v kind producer seq time id principal on_behalf_of session run request parent asserted action \
        resource \
        tool pin arguments decision code policies obligations labels budget budget_seen mode bundle entities trace engine"
        .split_whitespace()
        .collect();
    assert_eq!(keys(first, first.to_string().as_bytes()).len(), expected.len());
    assert_eq!((&decisions[1]["code"], &decisions[1]["decision"]), (&json!("policy.no_permit"), &json!("deny")));
    assert!(decisions[1].get("budget").is_none());
    assert_eq!(decisions[1]["id"], denied.id().to_string());
    assert_eq!((&decisions[2]["tool"], &decisions[2]["code"]), (&json!("sned"), &json!("input.unknown_tool")));
    assert!(decisions[2].get("pin").is_none() && unknown.recorded().is_some());
    let outcome = of_kind(&entries, "outcome")[0];
    assert_eq!(outcome["of"], first["id"]);
    assert_eq!((&outcome["status"], &outcome["error"]), (&json!("error"), &json!("TimeoutError")));
    assert_eq!(outcome["usage"], json!({"tokens": 7}));
    let load = of_kind(&entries, "policy_load")[0];
    assert_eq!(load["bundle"], first["bundle"]);
    let kept: Vec<_> = std::fs::read_dir(case.folder.join("bundle")).unwrap().flatten().collect();
    assert_eq!(kept.len(), 1);
    let bundle: Json = serde_json::from_slice(&std::fs::read(kept[0].path()).unwrap()).unwrap();
    assert_eq!((&bundle["policies"][0][1], &bundle["tools"][1]["name"]), (&json!(POLICIES), &json!("wipe")));
}

/// The order of members is part of the format, and the commitment is of exactly what policies read.
#[test]
fn the_order_is_fixed_and_the_payload_stays_outside() {
    let case = case("order", GateMode::Enforce, OnFull::Deny, Disk::default());
    let decision = case.check(&case.scope(&[]), "send", 1, Links::default());
    let seq = decision.recorded().unwrap().seq;
    case.log.wait(seq, Durability::Checkpointed, 5_000).unwrap();
    let wal = std::fs::read(case.folder.join("wal").join(format!("{:020}.seg", 0))).unwrap();
    let find = |text: &str| wal.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    let start = find("{\"v\":1,\"kind\":\"decision\"");
    let last = b"\"engine\":\"0.1.0\"}";
    let end = start + wal[start..].windows(last.len()).position(|window| window == last).unwrap() + last.len();
    let entry = std::str::from_utf8(&wal[start..end]).unwrap();
    let json: Json = serde_json::from_str(entry).unwrap();
    let order = "v kind producer seq time id principal on_behalf_of session action resource tool pin arguments decision code \
        policies obligations budget budget_seen mode bundle entities engine";
    assert_eq!(keys(&json, entry.as_bytes()).join(" "), order.split_whitespace().collect::<Vec<_>>().join(" "));
    assert!(!entry.contains("priv"), "no argument in an entry");
    let at = find("{\"input\":");
    let len = usize::try_from(json["arguments"]["bytes"].as_u64().unwrap()).unwrap();
    let payload = &wal[at..at + len];
    let principal = json!({"uid": {"type": "Agent", "id": "a\"1"}, "attrs": {"level": 3}, "parents": [], "tags": {}});
    let expected = json!({"input": {"n": 1, "text": "priv\"ate\n"}, "principal": principal});
    assert_eq!(serde_json::from_slice::<Json>(payload).unwrap(), expected);
    let salt: [u8; 32] = wal[at - 32..at].try_into().unwrap();
    let said = base64::engine::general_purpose::STANDARD.encode(commitment(&salt, payload));
    assert_eq!(json["arguments"]["commitment"], said);
}

#[test]
fn what_policies_ask_for_is_more_durable() {
    let case = case("durable", GateMode::Enforce, OnFull::Deny, Disk::default());
    let run = case.scope(&[]);
    assert_eq!(case.check(&run, "send", 1, Links::default()).recorded().unwrap().durability, Durability::Group);
    assert_eq!(case.check(&run, "wipe", 9, Links::default()).recorded().unwrap().durability, Durability::Sync);
    let entries = case.entries();
    assert_eq!(of_kind(&entries, "decision")[1]["durability"], "sync");
}

#[test]
fn model_calls_and_refusals_are_recorded() {
    let case = case("models", GateMode::Enforce, OnFull::Deny, Disk::default());
    let run = case.scope(&[]);
    let ask = |prompt_tokens| {
        let request = ModelRequest { model: "gpt-5", prompt_tokens, max_tokens: 20, n: 1 };
        case.gate.check_model(Some(&run), &request, case.gate.now_ms(), &mut Scratch::new())
    };
    let (allowed, call) = ask(30);
    assert!(allowed.allowed(), "{}", allowed.reason());
    assert_eq!(ask(70).0.code(), Code::BudgetContended);
    assert!(call.end());
    let refusal = (Code::InputTooLarge, "too large".to_owned());
    case.gate.refuse_call(Some(&run), "send", refusal, case.gate.now_ms(), Links::default(), &mut Scratch::new());
    let entries = case.entries();
    let decisions = of_kind(&entries, "decision");
    assert_eq!(decisions[0]["model"], json!({"name": "gpt-5", "prompt_tokens": 30, "max_tokens": 20, "n": 1}));
    assert_eq!(decisions[0]["resource"], "Model::\"gpt-5\"");
    let refused = &decisions[1]["budget"]["refused"];
    assert_eq!(
        (&refused["path"], &refused["unit"], &refused["window"]),
        (&json!("acme"), &json!("tokens"), &json!("total"))
    );
    assert_eq!((&refused["requested"], &refused["held"]), (&json!(90), &json!(50)));
    assert_eq!((&decisions[2]["code"], decisions[2].get("arguments")), (&json!("input.too_large"), None));
}

/// A disk that refuses lets the ring fill; then nothing is allowed and nothing is held.
#[test]
fn a_full_ring_denies_and_holds_nothing() {
    let stuck = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = Arc::clone(&stuck);
    let faults = move |operation: Operation, _: &Path| {
        let fails = operation == Operation::Sync && flag.load(std::sync::atomic::Ordering::Relaxed);
        fails.then_some(Fault::Error(28))
    };
    for on_full in [OnFull::Deny, OnFull::Allow] {
        let case =
            case(&format!("full-{on_full:?}"), GateMode::Enforce, on_full, Disk::faulty(Arc::new(faults.clone())));
        let run = case.scope(&[]);
        stuck.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut last = None;
        let mut unlogged = 0;
        for _ in 0..5_000 {
            let decision = case.check(&run, "send", 1, Links::default());
            if decision.recorded().is_none() {
                unlogged += 1;
                last = Some((decision.code(), decision.reason(), decision.hold().is_some()));
            }
        }
        let (code, reason, held) = last.unwrap();
        if on_full == OnFull::Deny {
            assert_eq!(code, Code::AuditUnavailable);
            assert!(reason.contains("ring of 512 KiB is full, because cannot bring to the disk"), "{reason}");
            assert!(!held);
        } else {
            assert_eq!((code, held), (Code::BudgetExhausted, false));
        }
        assert_eq!(case.ledger.holds().len(), 0, "what was allowed has ended");
        stuck.store(false, std::sync::atomic::Ordering::Relaxed);
        let entries = case.entries();
        let counted = |kind| of_kind(&entries, kind).iter().map(|entry| entry["count"].as_u64().unwrap()).sum::<u64>();
        assert_eq!(counted("denied_unlogged") + counted("gap"), unlogged);
        assert_eq!(of_kind(&entries, "decision").len() as u64 + unlogged, 5_000);
    }
}

#[test]
fn shadow_mode_is_recorded_as_such() {
    let case = case("shadow", GateMode::Shadow, OnFull::Deny, Disk::default());
    let decision = case.check(&case.scope(&["secret"]), "send", 9, Links::default());
    assert!(decision.allowed());
    let entries = case.entries();
    let entry = of_kind(&entries, "decision")[0];
    assert_eq!((&entry["mode"], &entry["would_deny"]), (&json!("shadow"), &json!("policy.forbidden")));
    assert_eq!(entry["would_deny_policies"], json!(["no-secrets"]));
}

#[test]
fn a_changed_limit_is_recorded() {
    let case = case("limit", GateMode::Enforce, OnFull::Deny, Disk::default());
    case.ledger.set_limit("acme", Unit::Tokens, Window::Total, 70).unwrap();
    let begun = std::time::Instant::now();
    while case.log.cursor() == 0 && begun.elapsed().as_secs() < 30 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let entries = case.entries();
    let changes = of_kind(&entries, "limit_changed");
    assert_eq!(changes.len(), 1);
    assert_eq!(
        (&changes[0]["before"], &changes[0]["after"], &changes[0]["path"]),
        (&json!(100), &json!(70), &json!("acme"))
    );
}
