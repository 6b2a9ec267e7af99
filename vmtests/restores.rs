//! Many restores in a row on a machine that is out of breath: its processors are busy with something
//! else, and the checkpoint is in no cache.

use crate::bench::Bench;
use rustix::fs::{Advice, fadvise};
use stackproof::cluster::node_tasks;
use stackproof::error::{Context, Error, Kind, Result};
use stackproof::lab::Lab;
use stackproof::lab::clock::since_epoch;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// So many restores are asked for.
const COUNT: &str = "STACKPROOF_RESTORES";

/// A clock that was set may still be off by so much, and shows whole seconds.
const OFF_AT_MOST: Duration = Duration::from_secs(3);

/// Threads that keep every processor busy until dropped: guests and tests get the half of it.
struct Burner(Arc<AtomicBool>);

impl Burner {
    fn start() -> Burner {
        let stop = Arc::new(AtomicBool::new(false));
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..processors {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Burner(stop)
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes the files of a folder out of the kernel's cache. Pages that nobody has written to disk yet
/// stay in it, so they are written first.
fn forget(folder: &Path) -> std::io::Result<()> {
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            forget(&path)?;
        } else {
            let file = File::open(&path)?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// Restores the checkpoint `from` again and again, `default` times where nothing else is asked for.
/// After each restore every clock is right, though it is years off in the checkpoint.
pub async fn restore_in_a_row(bench: &Bench, from: &Path, default: u32) -> Result<()> {
    let asked = std::env::var(COUNT).ok().map(|text| text.parse());
    let count = asked.transpose().doing(Kind::Input, || format!("{COUNT} is no number"))?;
    let _burner = Burner::start();
    for n in 1..=count.unwrap_or(default) {
        forget(from).doing(Kind::Host, || "the cache cannot be emptied".into())?;
        let start = Instant::now();
        let (options, patience) = (&bench.options, &bench.patience);
        let lab = Lab::restore(from, options, patience, &bench.redactor).await?.lab;
        let back = start.elapsed();
        right_clocks(bench, &lab).await.map_err(|e| e.while_doing(format!("restore {n}")))?;
        eprintln!("restore {n}: runs after {back:.1?}, right after {:.1?}", start.elapsed());
    }
    Ok(())
}

/// Sets the clocks as every restore does, and looks at them.
async fn right_clocks(bench: &Bench, lab: &Lab) -> Result<()> {
    let unstepped = lab.step_clocks(&bench.patience).await?;
    let reached = node_tasks::reach(lab, &bench.patience.speed)?;
    let left = node_tasks::set_clocks(&reached, &unstepped, &bench.patience).await?;
    if !left.is_empty() {
        return Err(Error::lab(format!("the clocks of {left:?} were left to chrony")));
    }
    for (node, reached) in lab.nodes().iter().zip(&reached) {
        let before = since_epoch();
        let shown = bench.ask(reached.shell.as_ref(), node, "date -u +%s").await?;
        let shown = Duration::from_secs(shown.parse().expect("seconds"));
        let after = since_epoch();
        if shown + OFF_AT_MOST < before || shown > after + OFF_AT_MOST {
            let message =
                format!("{} shows {shown:?} within {before:?} and {after:?}", node.name());
            return Err(Error::lab(message));
        }
    }
    Ok(())
}
