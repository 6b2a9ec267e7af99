//! What the engine saw and did, for people to read. Never read back: the nodes are the truth.

use crate::error::{Context, Kind, Result};
use crate::secret::Redactor;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// An append-only log (0600), every line cleaned of secrets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    file: Option<Arc<Mutex<File>>>,
    redactor: Redactor,
    start: Instant,
}

impl Journal {
    pub fn open(path: impl AsRef<Path>, redactor: Redactor) -> Result<Journal> {
        let path = path.as_ref();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .doing(Kind::Host, || format!("opening the journal {}", path.display()))?;
        let file = Some(Arc::new(Mutex::new(file)));
        Ok(Journal { file, redactor, start: Instant::now() })
    }

    /// Writes nowhere, but still cleans what errors show.
    pub fn none(redactor: Redactor) -> Journal {
        Journal { file: None, redactor, start: Instant::now() }
    }

    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// One line: seconds since the start, the node, and what happened.
    pub fn note(&self, node: &str, text: &str) {
        if let Some(file) = &self.file {
            let at = self.start.elapsed().as_secs_f64();
            let line = format!("{at:9.3} {node}: {}\n", self.redactor.clean(text));
            // A full disk must not end a run: the journal is a comfort, not the truth.
            let _ = file.lock().expect("journal lock").write_all(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_journal_is_private_and_holds_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let redactor = Redactor::default();
        redactor.add(&Secret::new("a-long-password"));
        let journal = Journal::open(&path, redactor).unwrap();
        journal.note("n1", "stderr: bad a-long-password here");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("n1: stderr: bad [secret] here"), "{text}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
