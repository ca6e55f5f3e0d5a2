//! Every bound of the core, each with its reason. A bound that is hit is named in the error that reports it.

/// Bytes of one policy file. Hosted Cedar services stop at 10 KB a policy; a megabyte is thousands of policies.
pub const POLICY_FILE_BYTES_MAX: usize = 1 << 20;
/// Bytes of one policy set: 10,000 agent-shaped policies are about 3 MB.
pub const POLICY_SET_BYTES_MAX: usize = 16 << 20;
/// Brackets open at once in policy text. The reference parser overflows a 2 MiB stack at about 150.
pub const POLICY_NESTING_MAX: usize = 64;
/// Tokens of one policy: bounds the length of operator chains, which the reference walks recursively.
pub const POLICY_TOKENS_MAX: usize = 100_000;
/// Policies and templates in one set.
pub const POLICIES_MAX: usize = 100_000;
/// Stack of the thread that parses, validates and lowers policies. With the nesting and token bounds above, the
/// deepest recursion measured needs a small part of it; the pages are touched only when used.
pub const PARSER_STACK_BYTES: usize = 512 << 20;

/// Bytes of an entities document.
pub const ENTITIES_BYTES_MAX: usize = 256 << 20;
/// Nesting of JSON documents (entities, contexts); the JSON reader itself stops at 128.
pub const JSON_NESTING_MAX: usize = 64;
/// Entities in one store.
pub const ENTITIES_MAX: usize = 4_000_000;
/// Entity-ancestor pairs in one store: a chain of 10,000 entities closes to 50 million pairs, which is a mistake.
pub const ANCESTORS_MAX: usize = 64_000_000;

/// Nesting of call arguments.
pub const ARGUMENT_NESTING_MAX: usize = 32;
/// Bytes of text and structure copied from one call's arguments by `check`.
pub const ARGUMENT_BYTES_MAX: usize = 64 << 10;
/// The same where the caller may wait.
pub const ARGUMENT_BYTES_WAIT_MAX: usize = 4 << 20;
