//! Approvals: what exactly somebody is asked to approve, and whether a grant is theirs.
//!
//! A grant is for one principal chain as the run describes it, one action on one resource, one snapshot of the
//! arguments and one definition of the tool, by the kinds of approval that were asked for: [`Binding`] writes these
//! down, and its digest is what the control table keeps. Where the gate knows the public keys of those who may approve,
//! a grant counts only with a signature of one of them.
//!
//! Nothing is held while somebody thinks about it, and no check waits here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use super::control::{ApprovalId, Grant};
use super::evidence::push_texts;
use super::scope::Scope;
use super::tools::Tool;
use crate::arguments::{Argument, ArgumentRef, Arguments, push_decimal, push_json_str};
use crate::audit::entry::{push_name, push_number, push_text};
use crate::audit::tree::{Hash, digest};
use crate::uid::EntityUid;

/// The type byte of an Ed25519 key in a verifier key.
const ED25519: u8 = 1;
/// What every signed answer begins with.
const CONTEXT: &str = "tollkeeper approval v1";

/// Whose signature makes a grant count.
#[derive(Debug, Clone)]
pub struct Approver {
    name: Box<str>,
    key: VerifyingKey,
}

impl Approver {
    /// Reads a verifier key as C2SP signed notes have it: `name+key id+base64`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("a key has the form NAME+KEY ID+BASE64".to_owned());
        };
        let bytes = STANDARD.decode(key).map_err(|_| "the key is not base64".to_owned())?;
        let Some((&ED25519, public)) = bytes.split_first() else {
            return Err("only Ed25519 keys can sign approvals".to_owned());
        };
        let public: &[u8; 32] = public.try_into().map_err(|_| format!("the key has {} bytes, not 32", public.len()))?;
        let known = key_id(name, &bytes);
        if name.is_empty() || id.len() != 8 || u32::from_str_radix(id, 16) != Ok(known) {
            return Err(format!("the key id is {known:08x}, not the one that is written"));
        }
        let key = VerifyingKey::from_bytes(public).map_err(|_| "the key is no point of the curve".to_owned())?;
        Ok(Self { name: name.into(), key })
    }

    /// The name in the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key as [`Self::parse`] reads it.
    pub fn text(&self) -> String {
        let mut bytes = vec![ED25519];
        bytes.extend_from_slice(self.key.as_bytes());
        format!("{}+{:08x}+{}", self.name, key_id(&self.name, &bytes), STANDARD.encode(bytes))
    }

    fn signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

/// The id of a key under a name, as C2SP has it.
fn key_id(name: &str, bytes: &[u8]) -> u32 {
    let hash = Sha256::new().chain_update(name).chain_update(b"\n").chain_update(bytes).finalize();
    hash.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// What whoever grants signs.
pub fn message(id: ApprovalId, digest: &Hash, expires_ms: i64) -> Vec<u8> {
    format!("{CONTEXT}\n{id}\n{}\n{expires_ms}\n", STANDARD.encode(digest)).into_bytes()
}

/// Whether a grant counts: without keys every one does.
pub(super) fn counts(approvers: &[Approver], digest: &Hash, grant: &Grant) -> bool {
    if approvers.is_empty() {
        return true;
    }
    let Some(signature) = &grant.signature else { return false };
    let message = message(grant.id, digest, grant.expires_ms);
    approvers.iter().any(|approver| approver.signed(&message, signature))
}

/// What is to be done, for a binding.
pub(super) struct What<'a> {
    pub(super) action: &'a EntityUid,
    pub(super) resource: &'a EntityUid,
    pub(super) pin: Option<&'a Hash>,
    /// Compact JSON, the keys of every object sorted
    pub(super) input: &'a [u8],
}

/// What an approval is for.
#[derive(Debug, Clone)]
pub struct Binding {
    /// Compact JSON in a fixed order
    pub document: Vec<u8>,
    /// Its SHA-256
    pub digest: Hash,
}

impl Binding {
    /// `None` where the arguments hold what has no exact JSON form: two such calls could not be told apart.
    pub(super) fn of_tool(scope: &Scope, tool: &Tool, arguments: &Arguments, kinds: &[&str]) -> Option<Self> {
        let input = sorted(arguments)?;
        let what = What { action: tool.action(), resource: tool.resource(), pin: Some(tool.pin()), input: &input };
        Some(Self::new(scope, &what, None, kinds))
    }

    /// Of a delegation from one scope to another, with what is handed over.
    pub(super) fn of_delegation(
        scope: &Scope,
        action: &EntityUid,
        inner: &Scope,
        handed: &Arguments,
        kinds: &[&str],
    ) -> Option<Self> {
        let input = sorted(handed)?;
        let what = What { action, resource: inner.principal(), pin: None, input: &input };
        Some(Self::new(scope, &what, Some(inner), kinds))
    }

    /// Of anything. A delegation hands over a scope of its own: what that may not do, and until when, is part of it.
    pub(super) fn new(scope: &Scope, what: &What<'_>, handed_over: Option<&Scope>, kinds: &[&str]) -> Self {
        let What { action, resource, pin, input } = what;
        let mut document = Vec::with_capacity(input.len().saturating_add(512));
        document.extend_from_slice(b"{\"action\":");
        push_json_str(&mut document, &action.to_string());
        document.extend_from_slice(b",\"approval\":1,\"arguments\":");
        document.extend_from_slice(input);
        document.extend_from_slice(b",\"chain\":[");
        for (place, uid) in scope.chain().enumerate() {
            if place > 0 {
                document.push(b',');
            }
            push_json_str(&mut document, &uid.to_string());
        }
        document.push(b']');
        if let Some(pin) = pin {
            push_text(&mut document, "pin", &STANDARD.encode(pin));
        }
        push_text(&mut document, "resource", &resource.to_string());
        // By what was asked for: another kind of approver has to be asked anew.
        let mut kinds = kinds.to_vec();
        kinds.sort_unstable();
        kinds.dedup();
        push_texts(&mut document, "kinds", kinds.into_iter());
        if let Some(user) = scope.on_behalf_of() {
            push_text(&mut document, "on_behalf_of", &user.to_string());
        }
        if let Some(inner) = handed_over {
            let digests: Vec<String> = inner.narrowings().iter().map(|own| STANDARD.encode(own.digest())).collect();
            push_texts(&mut document, "forbid", digests.iter().map(String::as_str));
            if inner.expires_ms() != i64::MAX {
                push_number(&mut document, "expires_ms", inner.expires_ms());
            }
        }
        // `,"principal":{...}` and `,"chain":[...]` of those that the run describes: with other attributes they are
        // others.
        let described = handed_over.unwrap_or(scope).fragments().described();
        if !described.is_empty() {
            push_name(&mut document, "described");
            document.push(b'{');
            document.extend_from_slice(described.get(1..).unwrap_or_default());
            document.push(b'}');
        }
        document.push(b'}');
        Self { digest: digest(&document), document }
    }
}

/// The arguments as JSON, the keys of every object sorted; `None` where they have no exact form.
fn sorted(arguments: &Arguments) -> Option<Vec<u8>> {
    let root = arguments.root().filter(|root| is_exact(*root))?;
    let mut out = Vec::new();
    write_sorted(root, &mut out);
    Some(out)
}

/// Recursion is bounded by the nesting of arguments.
fn write_sorted(value: ArgumentRef<'_>, out: &mut Vec<u8>) {
    match value.value() {
        Argument::Object => {
            let mut fields: Vec<_> = value.children().collect();
            fields.sort_by_key(|(key, _)| *key);
            out.push(b'{');
            for (place, (name, child)) in fields.into_iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                push_json_str(out, name);
                out.push(b':');
                write_sorted(child, out);
            }
            out.push(b'}');
        }
        Argument::List => {
            out.push(b'[');
            for (place, (_, child)) in value.children().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                write_sorted(child, out);
            }
            out.push(b']');
        }
        Argument::Str(text) => push_json_str(out, text),
        Argument::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        Argument::Long(value) => out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
        Argument::Float(value) => {
            // Writing to memory does not fail. The shortest form that reads back as the same number.
            let _ = serde_json::to_writer(out, &value);
        }
        Argument::Decimal(units) => push_decimal(out, units),
        Argument::Null | Argument::Unrepresentable => out.extend_from_slice(b"null"),
    }
}

/// Recursion is bounded by the nesting of arguments.
fn is_exact(value: ArgumentRef<'_>) -> bool {
    match value.value() {
        Argument::Unrepresentable => false,
        Argument::Float(number) => number.is_finite(),
        Argument::List | Argument::Object => value.children().all(|(_, child)| is_exact(child)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;
    use crate::gate::control::{Control, Standing};

    fn key(seed: u8, name: &str) -> (SigningKey, String) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let mut bytes = vec![ED25519];
        bytes.extend_from_slice(key.verifying_key().as_bytes());
        let hash = Sha256::new().chain_update(name).chain_update(b"\n").chain_update(&bytes).finalize();
        let id = u32::from_be_bytes(*hash.first_chunk().unwrap());
        (key, format!("{name}+{id:08x}+{}", STANDARD.encode(bytes)))
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let (_, text) = key(7, "admin");
        assert_eq!(Approver::parse(&text).unwrap().name(), "admin");
        assert_eq!(Approver::parse(&text).unwrap().text(), text);
        let renamed = text.replacen("admin", "other", 1);
        let short = text.get(..text.len() - 4).unwrap();
        for bad in ["", "admin", "admin+00000000", "admin+00000000+AAAA", &renamed, short] {
            assert!(Approver::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_grant_counts_with_the_signature_of_a_known_key_over_exactly_it() {
        let ((own, known), (other, _)) = (key(7, "admin"), key(8, "admin"));
        let approvers = [Approver::parse(&known).unwrap()];
        let (id, digest, expires_ms) = (ApprovalId(9), [3; 32], 1_000);
        let grant = |signature| {
            let control = Control::anonymous().unwrap();
            control.ask(id, &digest, expires_ms, 1).unwrap();
            control.answer(id, true, expires_ms, signature, 1).unwrap();
            let Standing::Granted(grant) = control.standing(&digest, 1) else { panic!("it was granted") };
            grant
        };
        let sign = |key: &SigningKey, id, digest: &Hash, expires_ms| {
            grant(Some(key.sign(&message(id, digest, expires_ms)).to_bytes()))
        };
        assert!(counts(&approvers, &digest, &sign(&own, id, &digest, expires_ms)));
        assert!(counts(&[], &digest, &grant(None)), "nobody asked for a signature");
        assert!(!counts(&approvers, &digest, &grant(None)), "unsigned");
        assert!(!counts(&approvers, &digest, &sign(&other, id, &digest, expires_ms)), "another key");
        assert!(!counts(&approvers, &digest, &sign(&own, ApprovalId(8), &digest, expires_ms)), "another question");
        assert!(!counts(&approvers, &digest, &sign(&own, id, &[4; 32], expires_ms)), "another action");
        assert!(!counts(&approvers, &digest, &sign(&own, id, &digest, 2_000)), "a later end");
    }
}
