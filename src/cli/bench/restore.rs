//! A cloud restored, beside the reading of the same memory from the same files.

use super::{Host, Number};
use crate::cli::lab;
use crate::cli::record::NotRun;
use crate::cli::session::Work;
use crate::cluster::{host, runs};
use crate::error::{Context, Kind, Result};
use crate::lab::checkpoint::Checkpoint;
use crate::lab::{BOOTS, Lab, LabOptions, sparse};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A cloud's memory is some gigabytes: more tries would take long and tell little.
const TRIES: usize = 2;
const STAGE: &str = "cloud-ready";

/// Where the memory files are when they are wanted.
#[derive(Clone, Copy)]
enum From {
    Disk,
    PageCache,
}

impl From {
    fn text(self) -> &'static str {
        match self {
            From::Disk => "from disk",
            From::PageCache => "from the page cache",
        }
    }
}

/// Rows for the last used cloud, if there is one.
pub async fn measure(work: &Work, host: &Host) -> Result<(Vec<Number>, Option<NotRun>)> {
    let Some(layer) = lab::layer(work, STAGE, None)? else {
        let reason = format!("no layer {STAGE} is kept: run `make e2e`");
        return Ok((Vec::new(), Some(NotRun { name: "restore of a cloud".into(), reason })));
    };
    let logs = tempfile::tempdir().doing(Kind::Host, || "a folder for consoles".into())?;
    let run_root = runs(&work.env.store);
    let logs = Some(logs.path().to_owned());
    let slots = run_root.clone();
    let (hypervisor, accel) = (host.hypervisor.clone(), host.accel);
    let options =
        LabOptions { run_root, slots, hypervisor, accel, boots: BOOTS, keep: false, logs };
    let saved = Checkpoint::open(&layer.dir)?;
    let _room = host::reserve(work, saved.spec(), true).await?;
    let files = saved.memories();
    let mut rows = Vec::new();
    for from in [From::Disk, From::PageCache] {
        let (mut restored, mut read, mut bytes) = (f64::MAX, f64::MAX, 0);
        for _ in 0..TRIES {
            let (seconds, count) = prepared(&files, from, || read_all(&files))?;
            (read, bytes) = (read.min(seconds), count);
            restored = restored.min(restore(work, &layer.dir, &options, &files, from).await?);
        }
        let gib = bytes as f64 / f64::from(1 << 30);
        rows.push(
            Number::new(format!("restore of {} {}", layer.lab, from.text()), restored, "s")
                .beside(format!("reading its {gib:.1} GiB of memory"), read),
        );
    }
    Ok((rows, None))
}

/// The seconds until all machines run with their clocks set.
async fn restore(
    work: &Work,
    folder: &Path,
    options: &LabOptions,
    files: &[PathBuf],
    from: From,
) -> Result<f64> {
    prepared(files, from, || Ok(()))?;
    let start = Instant::now();
    let restored = Lab::restore(folder, options, &work.patience(), &work.redactor).await?;
    restored.lab.step_clocks(&work.patience()).await?;
    let seconds = start.elapsed().as_secs_f64();
    restored.lab.stop().await?;
    Ok(seconds)
}

/// The files where they are wanted; then the seconds that `then` takes, and what it returns.
fn prepared<T>(
    files: &[PathBuf],
    from: From,
    then: impl Fn() -> io::Result<T>,
) -> Result<(f64, T)> {
    let cannot = || "the memory files of a layer".to_owned();
    match from {
        From::Disk => drop_cached(files).doing(Kind::Host, cannot)?,
        From::PageCache => drop(read_all(files).doing(Kind::Host, cannot)?),
    }
    let start = Instant::now();
    let out = then().doing(Kind::Host, cannot)?;
    Ok((start.elapsed().as_secs_f64(), out))
}

fn drop_cached(files: &[PathBuf]) -> io::Result<()> {
    for file in files {
        let file = File::open(file)?;
        // What is not yet on the disk would stay.
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Reads what is in the files and not in their holes, all files at once as machines do it. Returns
/// the bytes.
fn read_all(files: &[PathBuf]) -> io::Result<u64> {
    std::thread::scope(|scope| {
        let readers: Vec<_> = files.iter().map(|f| scope.spawn(move || read(f))).collect();
        let counts = readers
            .into_iter()
            .map(|r| r.join().unwrap_or_else(|_| Err(io::Error::other("a reader panicked"))));
        counts.sum()
    })
}

fn read(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let mut count = 0;
    sparse::parts(&file, 0, file.metadata()?.len(), |start, end| {
        count += end - start;
        sparse::read(&file, start, end, |_, _| Ok(()))
    })?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    #[test]
    fn holes_are_not_read_and_data_is_counted() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1; 8192]).unwrap();
        file.seek(io::SeekFrom::Start(64 << 20)).unwrap();
        file.write_all(&[2; 8192]).unwrap();
        file.as_file().sync_all().unwrap();
        let files = [file.path().to_owned(), file.path().to_owned()];
        let count = read_all(&files).unwrap();
        // A file system without holes has data everywhere.
        assert!(count == 2 * 16384 || count == 2 * ((64 << 20) + 8192), "{count}");
        drop_cached(&files).unwrap();
        assert_eq!(read_all(&files).unwrap(), count);
    }
}
