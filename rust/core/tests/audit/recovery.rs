//! A log's folder with damage all over it, driven by bytes: it opens, or says in an error why not.
//!
//! Where only the write-ahead file and the ring are damaged, what was signed is still there and verifies, in this epoch or
//! in one that was set aside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tollkeeper_core::audit::log::Log;

/// The files of a log whose process died with records in its ring: with what is not zero of each, and its length.
type Image = BTreeMap<PathBuf, (Vec<u8>, u64)>;

const SIGNED: usize = 301;

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let folder = super::Folder::new("recovery-image");
        let mut slow = super::options(1);
        slow.interval_ms = 60_000;
        slow.checkpoint_interval_ms = 60_000;
        let log = Log::open(&folder, slow).unwrap();
        for n in 0..SIGNED - 1 {
            super::append(&log, &format!("d{n}"));
            if n % 40 == 39 {
                log.flush(5_000).unwrap();
            }
        }
        log.checkpoint(5_000).unwrap();
        // Within the interval: they are in the ring and nowhere else.
        for n in 0..20 {
            super::append(&log, &format!("r{n}"));
        }
        let mut image = Image::new();
        read_into(&folder, Path::new(""), &mut image);
        image
    })
}

fn read_into(folder: &Path, below: &Path, image: &mut Image) {
    for entry in std::fs::read_dir(folder.join(below)).unwrap() {
        let name = below.join(entry.unwrap().file_name());
        let path = folder.join(&name);
        if path.is_dir() {
            read_into(folder, &name, image);
        } else {
            let mut bytes = std::fs::read(&path).unwrap();
            let len = bytes.len() as u64;
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            image.insert(name, (bytes, len));
        }
    }
}

/// Damages one of the files; of the private ones only, if that is asked for.
fn change(image: &mut Image, change: [u8; 6], private: bool) {
    let [which, low, high, value, how, more] = change;
    let is_private = |name: &PathBuf| name.starts_with("wal") || name.starts_with("ring");
    let names: Vec<PathBuf> = image.keys().filter(|name| !private || is_private(name)).cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = names[usize::from(which) % names.len()].clone();
    let place = usize::from(low) | (usize::from(high) << 8);
    let Some((bytes, len)) = image.get_mut(&name) else { return };
    match how % 16 {
        0 => *len = place as u64,
        1 => {
            image.remove(&name);
            return;
        }
        2 => bytes.clear(),
        3 => {
            let part = bytes.get(..place.min(bytes.len())).unwrap_or_default().to_vec();
            bytes.extend(part);
        }
        4 => {
            let other = names[usize::from(value) % names.len()].clone();
            let taken = image[&other].clone();
            image.insert(name.clone(), taken);
            return;
        }
        // A word of a header, with something large.
        5 | 6 => {
            let at = place % 64 * 8;
            bytes.resize(bytes.len().max(at + 8), 0);
            let word = [u64::MAX, 1 << 63, u64::from(value) << 32, u64::from(more), 1 << 40][usize::from(value) % 5];
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        _ if !bytes.is_empty() => {
            let at = (place | (usize::from(more % 2) << 16)) % bytes.len();
            bytes[at] = value;
        }
        _ => {}
    }
    *len = (*len).max(bytes.len() as u64).min(64 << 20);
    if how % 16 == 0 {
        bytes.truncate(place);
        *len = place as u64;
    }
}

/// Damages a folder, or only what is private in it, and opens it, twice.
pub(crate) fn check_recovery(name: &str, bytes: &[u8], private: bool) {
    let folder = super::Folder::new(name);
    let mut damaged = image().clone();
    for bytes in bytes.as_chunks::<6>().0.iter().take(40) {
        change(&mut damaged, *bytes, private);
    }
    for (name, (bytes, len)) in &damaged {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(*len).unwrap();
        if name.starts_with("signer.key") {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        }
    }
    let mut options = super::options(2);
    options.close_timeout_ms = 200;
    let log = match Log::open(&folder, options) {
        Ok(log) => log,
        Err(error) => {
            assert!(error.code().starts_with("audit.") && error.to_string().len() > 10, "{error}");
            return;
        }
    };
    let epoch = log.health().epoch;
    super::append(&log, "after");
    if log.close().is_err() {
        // The public files are such that no tile can be cut; the log says so and keeps its records.
        assert!(!private);
        return;
    }
    let again =
        Log::open(&folder, super::options(3)).unwrap_or_else(|error| panic!("opened once and not twice: {error}"));
    assert_eq!(again.health().epoch, epoch, "the second opening finds nothing new");
    again.close().unwrap();
    if private {
        let current = super::read_epoch(&folder);
        assert!(super::texts(&current.entries).iter().any(|text| text == "after"));
        let first = if epoch == 1 { current } else { super::read_epoch(&folder.join("epochs/1")) };
        let found = super::texts(&first.entries);
        assert!(
            found.len() >= SIGNED - 1
                && found[..SIGNED - 1].iter().enumerate().all(|(n, text)| *text == format!("d{n}"))
        );
    }
}
