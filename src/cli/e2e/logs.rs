//! The folder of a run's consoles, journals and logs.

use crate::cli::args::E2e;
use crate::cli::session::Work;
use crate::error::{Context, Kind, Result};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// So many folders of earlier runs are kept in the store; older ones go.
const KEPT: usize = 10;
const PREFIX: &str = "e2e-";

pub struct Logs {
    pub folder: PathBuf,
    /// Whether it was asked for by name: then it stays, whatever the end.
    given: bool,
}

impl Logs {
    /// `--log-dir`, else a folder of this run in the store. From now on an error names it.
    pub fn open(work: &Work, args: &E2e) -> Result<Logs> {
        let (folder, given) = match &args.log_dir {
            Some(given) => (work.env.cwd.join(given), true),
            None => {
                let all = work.env.store.join("logs");
                prune(&all);
                (all.join(name()), false)
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .doing(Kind::Host, || format!("{} cannot be made", folder.display()))?;
        work.learn(|facts| facts.logs = Some(folder.clone()));
        Ok(Logs { folder, given })
    }

    /// After a run that passed nobody looks for them.
    pub fn discard(self, work: &Work, keep: bool) {
        if !self.given && !keep {
            // What stays is pruned by a later run.
            let _ = std::fs::remove_dir_all(&self.folder);
            work.learn(|facts| facts.logs = None);
        }
    }
}

fn name() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{PREFIX}{:010}-{}", since.as_secs(), std::process::id())
}

/// The names begin with the time: the last ones are the newest.
fn prune(all: &Path) {
    let mut runs: Vec<PathBuf> = std::fs::read_dir(all)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|e| e.path())
        .filter(|path| path.is_dir())
        .collect();
    runs.sort();
    let old = runs.len().saturating_sub(KEPT);
    for run in &runs[..old] {
        let _ = std::fs::remove_dir_all(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_runs_are_kept_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..KEPT + 3 {
            std::fs::create_dir(dir.path().join(format!("e2e-{i:010}-1"))).unwrap();
        }
        std::fs::write(dir.path().join("build-x.log"), "").unwrap();
        prune(dir.path());
        assert!(!dir.path().join("e2e-0000000002-1").exists());
        assert!(dir.path().join("e2e-0000000003-1").exists());
        assert!(dir.path().join("build-x.log").exists());
    }
}
