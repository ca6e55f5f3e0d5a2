//! Reads `checkpoints.log`: every checkpoint that a log has published, oldest first, one at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Take};
use std::path::Path;

use super::error::VerifyError;
use super::note::{Checkpoint, VerifierKey};
use super::tiles::is_absent;
use crate::limits::AUDIT_NOTE_BYTES_MAX;

/// What came next in the history.
#[derive(Debug)]
pub(super) enum Past {
    /// A checkpoint that the key has signed, and its number
    Checkpoint(Checkpoint, u64),
    /// Something that is none, and where
    Fault(String),
    /// The last block is not whole, as after a crash
    Torn,
    /// There is nothing more
    End,
}

/// A history being read.
#[derive(Debug)]
pub(super) struct History {
    file: BufReader<Take<File>>,
    keys: Vec<VerifierKey>,
    number: u64,
    line: u64,
    ended: bool,
}

impl History {
    /// Opens the file; `None` if there is none. Without keys, signatures are not checked. What is appended from now on is
    /// not read: it may be about entries that a writer at work adds after the caller has looked.
    pub(super) fn open(path: &Path, keys: Vec<VerifierKey>) -> Result<Option<Self>, VerifyError> {
        match File::open(path) {
            Ok(file) => {
                let length = file.metadata().map_err(|error| VerifyError::io(path, error))?.len();
                let file = BufReader::with_capacity(1 << 16, file.take(length));
                Ok(Some(Self { file, keys, number: 0, line: 1, ended: false }))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(VerifyError::io(path, error)),
        }
    }

    /// The next checkpoint. After a fault or a torn end there is nothing more.
    pub(super) fn next(&mut self) -> Past {
        if self.ended {
            return Past::End;
        }
        let first = self.line;
        let (text, last, whole) = match self.block() {
            Ok(block) => block,
            Err(message) => {
                self.ended = true;
                return Past::Fault(format!("line {first}: {message}"));
            }
        };
        self.ended = last;
        if last && text.is_empty() {
            return Past::End;
        }
        self.number = self.number.saturating_add(1);
        let read = match self.keys.as_slice() {
            [] => Checkpoint::unsigned(&text),
            keys => Checkpoint::signed(&text, keys),
        };
        match read {
            Ok(checkpoint) => Past::Checkpoint(checkpoint, self.number),
            // A block that a crash cut off: it has no line feed at its end, or no signature line yet.
            Err(VerifyError::Format { .. }) if last && (!whole || !text.contains("\n\n\u{2014}")) => Past::Torn,
            Err(error) => {
                self.ended = true;
                Past::Fault(format!("the checkpoint from line {first} on: {error}"))
            }
        }
    }

    /// Text up to the next separator; whether the file ends with it, and with a line feed.
    fn block(&mut self) -> Result<(String, bool, bool), String> {
        let mut text = Vec::new();
        loop {
            let before = text.len();
            let room = AUDIT_NOTE_BYTES_MAX.saturating_sub(before) as u64;
            let read = self.file.by_ref().take(room).read_until(b'\n', &mut text).map_err(|error| error.to_string())?;
            if room == 0 {
                return Err(format!("a checkpoint exceeds {AUDIT_NOTE_BYTES_MAX} bytes"));
            }
            self.line = self.line.saturating_add(1);
            let separator = text.get(before..) == Some(b"---\n");
            if separator {
                text.truncate(before);
            }
            if read == 0 || separator {
                let whole = text.ends_with(b"\n");
                let text = String::from_utf8(text).map_err(|_| "not UTF-8".to_owned())?;
                return Ok((text, read == 0, whole));
            }
        }
    }
}
