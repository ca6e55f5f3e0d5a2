//! Every bound of the core, each with its reason. A bound that is hit is named in the error that reports it.

/// Bytes of one policy file. Hosted Cedar services stop at 10 KB a policy; a megabyte is thousands of policies.
pub const POLICY_FILE_BYTES_MAX: usize = 1 << 20;
/// Bytes of one policy set: 10,000 agent-shaped policies are about 3 MB.
pub const POLICY_SET_BYTES_MAX: usize = 16 << 20;
/// Policies of one file: the shortest policy, `permit(principal,action,resource);`, has 34 bytes, so no valid file
/// holds more, and a megabyte of `;` would cost 5 s and as many errors (100,000 cost 0.3 s).
pub const POLICY_FILE_POLICIES_MAX: usize = POLICY_FILE_BYTES_MAX / 34;
/// Brackets open at once in policy and schema text. The reference parser overflows a 2 MiB stack at about 150; at 64
/// it uses 1.2 MiB in any build (18 KiB a level), and the deepest policy of the conformance corpus is far below.
pub const POLICY_NESTING_MAX: usize = 64;
/// Tokens of one policy: bounds operator chains, which the reference walks recursively (validating `1+1+...` takes
/// 1.8 KiB of stack a token in release builds, 1.3 KiB in dev builds: 35 MiB at this limit) and lists. Validation is
/// quadratic in the `has` tests of a policy: 100,000 tokens of them took 28 s, which makes about 1 s at this limit.
pub const POLICY_TOKENS_MAX: usize = 20_000;
/// `if` in one policy: `else if` nests without brackets. At 256 parsing takes 0.5 MiB of stack, validating 1.2 MiB.
pub const POLICY_IFS_MAX: usize = 256;
/// `!` or `-` in a row: the language allows four, and a fifth `-` if the first subtracts.
pub const POLICY_UNARY_RUN_MAX: usize = 8;
/// `\*` in one string that does not follow `like`. There it is an error, and the reference copies the whole string
/// twice for each (400,000 bad escapes would ask for a terabyte); a parenthesised pattern may have a few.
pub const LITERAL_STAR_ESCAPES_MAX: usize = 16;
/// Policies and templates in one set.
pub const POLICIES_MAX: usize = 100_000;
/// Stack of the thread that parses, validates and lowers policies. With the nesting and token bounds above, the
/// deepest recursion measured (see [`POLICY_TOKENS_MAX`]) needs 35 MiB of it; the pages are touched only when used.
pub const PARSER_STACK_BYTES: usize = 128 << 20;
/// Validation work: for each policy, request types its action admits x tokens x (tokens + [`VALIDATION_WORK_PER_TOKEN`]),
/// plus [`VALIDATION_WORK_PER_ENVIRONMENT`] for each request type of the schema. A unit was at most 3 ns on an
/// idle machine; 10,000 policies that name their action fit with 1,000 tools.
pub const VALIDATION_WORK_MAX: u64 = 10_000_000_000;
/// The linear share of validation: 2.4 us a token.
pub const VALIDATION_WORK_PER_TOKEN: u64 = 800;
/// What a request type costs that the scope excludes: about 2 us.
pub const VALIDATION_WORK_PER_ENVIRONMENT: u64 = 500;

/// Bytes of a schema: about 10,000 tools.
pub const SCHEMA_BYTES_MAX: usize = 1 << 20;
/// Fields of one record in schema text: the reference inserts each at the front of a list, which is quadratic
/// (16,000 took 0.5 s; a megabyte of records of 2,000 took 17 s on a machine shared with other builds).
pub const SCHEMA_RECORD_FIELDS_MAX: usize = 1_000;
/// Types of a schema after the reference has inlined the common ones: forty lines that each name the line before
/// twice would expand to a trillion.
pub const SCHEMA_EXPANDED_MAX: usize = 1_000_000;
/// Common types that refer to one another in a row.
pub const SCHEMA_TYPE_CHAIN_MAX: usize = 256;
/// Steps of closing the entity-type and action hierarchies: a chain of 2,000 actions is 2 million steps and took 2 s.
pub const SCHEMA_CLOSURE_MAX: usize = 250_000;

/// Bytes of an entities document.
pub const ENTITIES_BYTES_MAX: usize = 256 << 20;
/// Nesting of JSON documents (entities, contexts); the JSON reader itself stops at 128.
pub const JSON_NESTING_MAX: usize = 64;
/// Entities in one store.
pub const ENTITIES_MAX: usize = 4_000_000;
/// Entity-ancestor pairs in one store: a chain of 10,000 entities closes to 50 million pairs, which is a mistake.
pub const ANCESTORS_MAX: usize = 64_000_000;
/// Slots looked at while closing: an entity with many parents that share their ancestors looks at each list and keeps
/// little of it. This many steps took 1.4 s.
pub const CLOSURE_STEPS_MAX: usize = 1_000_000_000;
/// Entries of a delta layer beyond which it should be compacted: each update copies the delta, at 0.2 us an entry.
pub const ENTITY_DELTA_MAX: usize = 4_096;
/// Parent and ancestor slots of a delta layer beyond which it should be compacted (4 bytes each).
pub const ENTITY_DELTA_PAIRS_MAX: usize = 262_144;
/// Bytes of a context document in Cedar's JSON.
pub const CONTEXT_BYTES_MAX: usize = 4 << 20;

/// Bytes of one sentence of an explanation; a person reads no longer one.
pub const EXPLAIN_SENTENCE_BYTES_MAX: usize = 600;
/// Levels of an expression that an explanation follows.
pub const EXPLAIN_DEPTH_MAX: usize = 12;
/// Items of a list in an explanation.
pub const EXPLAIN_ITEMS_MAX: usize = 8;
/// Characters of a literal or a name in an explanation.
pub const EXPLAIN_TEXT_CHARS_MAX: usize = 80;
/// Characters of a value of the request or of an entity in an explanation.
pub const EXPLAIN_VALUE_CHARS_MAX: usize = 60;
/// Characters of an annotation or a policy id in an explanation.
pub const EXPLAIN_ANNOTATION_CHARS_MAX: usize = 200;
/// Unsatisfied candidates printed with a request; the rest are counted.
pub const EXPLAIN_CANDIDATES_MAX: usize = 200;
/// Rows of a matrix: with 10,000 policies, 64 x 128 cells took 1.1 to 1.9 s in a dev build.
pub const MATRIX_ROWS_MAX: usize = 64;
/// See [`MATRIX_ROWS_MAX`].
pub const MATRIX_COLUMNS_MAX: usize = 128;
/// Conditions named in one cell of a matrix.
pub const MATRIX_CONDITIONS_MAX: usize = 6;

/// Nesting of call arguments.
pub const ARGUMENT_NESTING_MAX: usize = 32;
/// Bytes of text and structure copied from one call's arguments by `check`.
pub const ARGUMENT_BYTES_MAX: usize = 64 << 10;
/// The same where the caller may wait.
pub const ARGUMENT_BYTES_WAIT_MAX: usize = 4 << 20;

/// Tools in one registry.
pub const TOOLS_MAX: usize = 10_000;
/// Bytes of a tool's name: runtimes stop at 64 or 128 characters.
pub const TOOL_NAME_BYTES_MAX: usize = 256;
/// Bytes of a model's name: as many as a price table takes.
pub const MODEL_NAME_BYTES_MAX: usize = 255;
/// Bytes of one tool's JSON Schema.
pub const TOOL_SCHEMA_BYTES_MAX: usize = 256 << 10;
/// Bytes of the sentence that says why a tool is withheld; longer ones are cut.
pub const WITHHELD_REASON_BYTES_MAX: usize = 4 << 10;
/// Subschemas of one tool.
pub const TOOL_SCHEMA_NODES_MAX: usize = 10_000;
/// Schemas entered inside one another while reading arguments: arguments nest at most [`ARGUMENT_NESTING_MAX`] deep,
/// and each level may pass a reference and an alternative.
pub const TOOL_SCHEMA_DEPTH_MAX: usize = 128;
/// Pairs of a value and a subschema looked at for one call: the largest `check` has 4,096 values, and alternatives
/// inside alternatives would otherwise double with each level.
pub const TOOL_SCHEMA_STEPS_MAX: u32 = 100_000;
/// Runs inside one another: each check looks whether one of them is over.
pub const RUNS_NESTED_MAX: usize = 256;
/// Rows of one `check_many`: each may take a hold and a place in the ring, of which there are not many more.
pub const CHECK_ROWS_MAX: usize = 65_536;
/// Principals of one chain of delegations, the one that acts included: each is evaluated at every check.
pub const CHAIN_MAX: usize = 4;
/// Bytes of the forbids that one run brings along: they are compiled when it starts.
pub const RUN_FORBID_BYTES_MAX: usize = 64 << 10;
/// Sets of such forbids along a chain of runs inside one another: each is evaluated at every check.
pub const RUN_FORBID_SETS_MAX: usize = 8;
/// Bytes of one id that a host asserts: names of agents and ids of calls, as hosts make them.
pub const ASSERTED_BYTES_MAX: usize = 256;
/// Labels of one session.
pub const SESSION_LABELS_MAX: usize = 64;
/// Bytes of a session id or a label.
pub const SESSION_TEXT_BYTES_MAX: usize = 256;

/// The largest amount of one unit in one hold, charge or settle: 9 million US dollars in nano-USD, and exact as a
/// JSON number.
pub const AMOUNT_MAX: i64 = 1 << 53;
/// The largest limit or overdraft: a thousand million US dollars in nano-USD. A cell at its limit still takes 896
/// times the largest amount before its arithmetic has to saturate.
pub const LIMIT_MAX: i64 = 1 << 60;
/// Cells that one reserve may touch: levels x windows x units.
pub const CELLS_MAX: usize = 48;
/// Levels of a budget path.
pub const BUDGET_DEPTH_MAX: usize = 8;
/// Bytes of a budget path.
pub const BUDGET_PATH_BYTES_MAX: usize = 255;
/// Bytes of one segment of a budget path.
pub const BUDGET_SEGMENT_BYTES_MAX: usize = 64;
/// Budgets of one ledger, children made on demand included: at five windows each they take 500 MB.
pub const BUDGETS_MAX: u32 = 65_536;
/// Budgets of one ledger where nobody says: what the file lists, and this many children made on demand.
pub const BUDGETS_SPARE: u32 = 4_096;
/// Children one parent may have where nobody says.
pub const BUDGET_CHILDREN_DEFAULT: u32 = 1_024;
/// Holds alive at once, where nobody says: an engine of 10,000 sequences fits.
pub const HOLDS_DEFAULT: u32 = 16_384;
/// Holds alive at once: 512 bytes each, and no more than a cell's word can count.
pub const HOLDS_MAX: u32 = 131_072;
/// Processes attached to one ledger at once: API servers, engine cores and workers of one host.
pub const LEDGER_PROCESSES_MAX: usize = 512;
/// Times a step of the ledger looks again at a word that another process is changing before it gives up and denies.
/// A change takes less than a microsecond unless its process was stopped in the middle.
#[cfg(not(loom))]
pub const LEDGER_SPINS_MAX: u32 = 2_000;
/// The same for the model checker, which tries every number of them.
#[cfg(loom)]
pub const LEDGER_SPINS_MAX: u32 = 2;
/// How far the wall clock may run ahead of the boot clock before it is not followed: time servers slew by less.
pub const CLOCK_SLACK_MS: i64 = 1_000;
/// Control events a ledger remembers (changes of limits, recoveries).
pub const LEDGER_EVENTS_MAX: usize = 256;
/// Models in one price table, and components of one model.
pub const PRICES_MAX: usize = 1_024;
/// The highest price, in nano-USD per million tokens: a thousand US dollars a token.
pub const PRICE_MAX: u64 = 1_000_000_000_000_000_000;

/// Bytes of one entry of the audit log: what the length in an entry bundle can say.
pub const ENTRY_BYTES_MAX: usize = 65_535;
/// Bytes of a log's origin; it is part of every checkpoint and of the start entry.
pub const ORIGIN_BYTES_MAX: usize = 255;
/// Bytes of the ring where nobody says: 20,000 decisions of 800 bytes, which is what a writer that waits 20 ms for the
/// disk lets pile up at a million a second.
pub const RING_BYTES_DEFAULT: usize = 16 << 20;
/// Bytes of the smallest and the largest ring. The smallest takes the arguments of any `check` (see
/// [`ARGUMENT_BYTES_MAX`]: at worst half as much again) in half of it.
pub const RING_BYTES_MIN: usize = 512 << 10;
/// See [`RING_BYTES_MIN`]; lines are counted in 24 bits.
pub const RING_BYTES_MAX: usize = 512 << 20;
/// Bytes of one record in the ring: the arguments of any `acheck` with room to spare. At worst every byte of it becomes
/// seven in an entry or a payload (an escape of an escape), and with a batch before it that is one frame.
pub const RECORD_BYTES_MAX: usize = 8 << 20;
/// Bytes of one frame of a write-ahead segment; what claims to be longer is none.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Bytes of one write-ahead segment where nobody says: preallocated, so that a full disk is noticed early.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// The smallest segment: it takes one batch with the largest record.
pub const SEGMENT_BYTES_MIN: u64 = 16 << 20;
/// Bytes of entries and payloads in one batch, after which the writer brings it to the disk: a disk that writes 300
/// MB/s takes 7 ms for it.
pub const BATCH_BYTES_MAX: usize = 2 << 20;
/// Entries of one batch.
pub const BATCH_ENTRIES_MAX: usize = 32_768;
/// Process slots of one audit directory.
pub const AUDIT_SLOTS_MAX: usize = 512;
/// Outcomes that wait for room in the ring, beside which no more are kept than there are decisions open: a hundred
/// thousand at once are a mistake.
pub const OUTCOMES_WAITING_MAX: usize = 100_000;

/// Bytes of one entry of an audit log: the length in an entry bundle has 16 bits.
pub const AUDIT_ENTRY_BYTES_MAX: usize = 65_535;
/// Bytes of one frame that the verifier reads at once; batches are far smaller, and a damaged length must not ask for
/// all memory.
pub const AUDIT_FRAME_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a signed note: a checkpoint of three lines and a hundred signatures of the largest kind fit.
pub const AUDIT_NOTE_BYTES_MAX: usize = 1_000_000;
/// Signature lines of a signed note: the format asks for at least 16.
pub const AUDIT_NOTE_SIGNATURES_MAX: usize = 100;
/// Findings that a verification lists; further ones are only counted.
pub const AUDIT_FAULTS_MAX: usize = 100;
/// Ranges of missing sequence numbers that a verification keeps; further ones are only counted.
pub const AUDIT_RANGES_MAX: usize = 10_000;
/// Producers of one log that a verification follows: each start of a process makes two.
pub const AUDIT_PRODUCERS_MAX: usize = 1_000_000;
/// Pages of decisions without outcome that a verification follows: 512 bytes each for 4,096 decisions of one process.
pub const AUDIT_OPEN_PAGES_MAX: usize = 65_536;
/// Records of sibling logs (in `start` entries) that a verification follows up.
pub const AUDIT_SIBLINGS_MAX: usize = 4_096;
/// Nesting of an entry's JSON.
pub const AUDIT_JSON_NESTING_MAX: usize = 64;
/// Places in a damaged segment that are tried for the next whole frame: each costs a checksum.
pub const AUDIT_RESYNC_TRIES_MAX: usize = 1_024;
/// Entries between two calls of a verification's progress callback.
pub const AUDIT_PROGRESS_ENTRIES: u64 = 65_536;

/// Revocations in force at once: an operator who revokes more wants a policy. They take 4 MB.
pub const CONTROL_REVOCATIONS_MAX: usize = 4_096;
/// Bytes of a revoked name: a principal's uid, a tool or a session.
pub const CONTROL_NAME_BYTES_MAX: usize = 512;
/// Bytes of the reason of a revocation.
pub const CONTROL_REASON_BYTES_MAX: usize = 256;
/// Bytes of the name of who revoked.
pub const CONTROL_BY_BYTES_MAX: usize = 128;
/// Sessions with labels that one host remembers: 2 MB, and 2,000 new ones a day find room for a month.
pub const CONTROL_SESSIONS_MAX: usize = 65_536;
/// Places that one session may have. With three quarters of all in use, all 64 are once in 10^8.
pub const CONTROL_SESSION_PROBES_MAX: usize = 64;
/// Minutes without use after which a session's labels may be forgotten, if its place is needed: 30 days, longer than
/// any runtime keeps a conversation alive by itself, and a month of them fits.
pub const CONTROL_SESSION_IDLE_MINUTES: u32 = 30 * 24 * 60;
/// Approvals that wait or are granted at once: people answer them.
pub const CONTROL_APPROVALS_MAX: usize = 1_024;
/// Gates of one host that are counted apart: as many processes as attach to a ledger.
pub const CONTROL_GATES_MAX: usize = 512;
/// Decision codes that are counted apart: there are fewer, and a file's layout stays when one is added.
pub const CONTROL_CODES_MAX: usize = 32;
/// Milliseconds to wait for the lock of the control file: who holds it waits for a disk at most.
pub const CONTROL_LOCK_TRIES: u32 = 5_000;
/// Times a reader of the revocations begins anew because they were changed meanwhile, before it denies everything. A
/// change takes longer than a reading unless there is no disk.
#[cfg(not(loom))]
pub const CONTROL_READS_MAX: u32 = 1_000;
/// The same for the model checker.
#[cfg(loom)]
pub const CONTROL_READS_MAX: u32 = 3;
