//! Writes a store as Cedar's entity JSON, for tests and for comparing with the reference.

use std::net::IpAddr;

use serde_json::{Map, Value as Json, json};

use super::{Entities, EntityData, EntityRef, Field, refuse, shown};
use crate::policy::error::PolicyErrors;
use crate::uid::EntityUid;
use crate::value::{Ip, Val};

impl Entities {
    /// All entities in Cedar's format, sorted by uid; parents are the direct ones, sorted. A record with the single key
    /// `__entity`, `__extn` or `__expr` cannot be written: it would be read back as something else.
    pub fn to_json(&self) -> Result<Json, PolicyErrors> {
        let mut entities: Vec<EntityRef<'_>> = self.iter().collect();
        entities.sort_by(|a, b| a.uid().cmp(b.uid()));
        entities.iter().map(entity_json).collect::<Result<_, _>>().map(Json::Array)
    }
}

/// One entity that is not in a store, as Cedar's JSON; `None` where it cannot be written.
pub(crate) fn entity_json_text(entity: &EntityData) -> Option<String> {
    let mut json = Map::new();
    json.insert("uid".to_owned(), uid_json(&entity.uid));
    json.insert("attrs".to_owned(), fields_json(&entity.attrs)?);
    json.insert("parents".to_owned(), entity.parents.iter().map(|uid| uid_json(uid)).collect());
    json.insert("tags".to_owned(), fields_json(&entity.tags)?);
    Some(Json::Object(json).to_string())
}

fn entity_json(entity: &EntityRef<'_>) -> Result<Json, PolicyErrors> {
    let unwritable = || {
        let message = format!("a record in `{}` has the form of an escape", shown(entity.uid()));
        refuse("entities.reserved_key", message, None)
    };
    let mut parents: Vec<&EntityUid> = entity.parents().map(|uid| &**uid).collect();
    parents.sort();
    let mut json = Map::new();
    json.insert("uid".to_owned(), uid_json(entity.uid()));
    json.insert("attrs".to_owned(), fields_json(entity.attrs()).ok_or_else(unwritable)?);
    json.insert("parents".to_owned(), parents.into_iter().map(uid_json).collect());
    if !entity.tags().is_empty() {
        json.insert("tags".to_owned(), fields_json(entity.tags()).ok_or_else(unwritable)?);
    }
    Ok(Json::Object(json))
}

fn uid_json(uid: &EntityUid) -> Json {
    json!({ "type": uid.ty(), "id": uid.id() })
}

fn fields_json(fields: &[Field]) -> Option<Json> {
    let fields = fields.iter().map(|(name, value)| Some((name.to_string(), value_json(value)?)));
    fields.collect::<Option<Map<_, _>>>().map(Json::Object)
}

fn value_json(value: &Val) -> Option<Json> {
    Some(match value {
        Val::Bool(flag) => json!(flag),
        Val::Long(number) => json!(number),
        Val::Str(text) => json!(text),
        Val::Entity(uid) => json!({ "__entity": uid_json(uid) }),
        Val::Decimal(units) => call_json("decimal", &decimal_text(*units)),
        Val::Duration(ms) => call_json("duration", &format!("{ms}ms")),
        Val::Datetime(ms) => {
            let args = [call_json("datetime", "1970-01-01"), call_json("duration", &format!("{ms}ms"))];
            json!({ "__extn": { "fn": "offset", "args": args } })
        }
        Val::Ip(ip) => call_json("ip", &ip_text(ip)),
        Val::Set(items) => items.iter().map(value_json).collect::<Option<Vec<_>>>().map(Json::Array)?,
        Val::Record(fields) => match &**fields {
            [(name, _)] if ["__entity", "__extn", "__expr"].contains(&&**name) => return None,
            fields => fields_json(fields)?,
        },
    })
}

fn call_json(name: &str, arg: &str) -> Json {
    json!({ "__extn": { "fn": name, "arg": arg } })
}

fn decimal_text(units: i64) -> String {
    let sign = if units < 0 { "-" } else { "" };
    let digits = format!("{:05}", units.unsigned_abs());
    let (whole, fraction) = digits.split_at_checked(digits.len().saturating_sub(4)).unwrap_or_default();
    format!("{sign}{whole}.{fraction}")
}

/// All groups of a v6 address are written out: the short form of some is one that Cedar refuses (`::ffff:1.2.3.4`).
fn ip_text(ip: &Ip) -> String {
    match ip.addr {
        IpAddr::V4(addr) => format!("{addr}/{}", ip.prefix),
        IpAddr::V6(addr) => {
            let groups: Vec<String> = addr.segments().iter().map(|group| format!("{group:x}")).collect();
            format!("{}/{}", groups.join(":"), ip.prefix)
        }
    }
}
