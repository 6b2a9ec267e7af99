//! Writing to paths that a user named, whatever stands there.
//!
//! A regular file is replaced whole or not at all, readable by its owner alone. A symbolic link is
//! followed and its target is replaced. A device, a FIFO, a socket or an open descriptor
//! (`/dev/stdout`) is written to: renaming a file over `/dev/null` would take it from the host.

use crate::error::{Error, Kind, Result};
use rustix::fs::{Access, OFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// What only its owner may read.
pub const PRIVATE_MODE: u32 = 0o600;

/// As many as Linux follows.
const MAX_LINKS: usize = 40;

/// For the reader of a FIFO to come.
const READER_TIMEOUT: Duration = Duration::from_secs(10);
const READER_INTERVAL: Duration = Duration::from_millis(50);

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteTarget {
    /// A regular file, or one to be made; links are followed.
    Regular(PathBuf),
    /// A device or a FIFO.
    Special(PathBuf),
    /// A listening socket.
    Socket(PathBuf),
    /// A descriptor of this process: `/dev/stdout`, `/dev/fd/3`, `/proc/self/fd/1`.
    Descriptor(u32),
}

impl WriteTarget {
    pub fn resolve(path: &Path) -> io::Result<WriteTarget> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            if let Some(number) = descriptor(&path) {
                return Ok(WriteTarget::Descriptor(number));
            }
            match std::fs::symlink_metadata(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(WriteTarget::Regular(path)),
                Err(e) => return Err(e),
                Ok(meta) if meta.is_symlink() => {
                    let to = std::fs::read_link(&path)?;
                    path = folder_of(&path).join(to);
                }
                Ok(meta) if meta.is_dir() => {
                    return Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder"));
                }
                Ok(meta) if meta.is_file() => return Ok(WriteTarget::Regular(path)),
                Ok(meta) if meta.file_type().is_socket() => return Ok(WriteTarget::Socket(path)),
                Ok(_) => return Ok(WriteTarget::Special(path)),
            }
        }
        Err(Errno::LOOP.into())
    }
}

/// A path that will be written, checked before the work whose result it takes.
#[derive(Debug)]
pub struct NamedOutput {
    target: WriteTarget,
    /// A FIFO stays open: closing it would end its reader.
    opened: Option<File>,
}

impl NamedOutput {
    /// Finds out whether the path can be written, and changes nothing. Waits some seconds for the
    /// reader of a FIFO.
    pub fn check(path: &Path) -> io::Result<NamedOutput> {
        let target = WriteTarget::resolve(path)?;
        let opened = match &target {
            WriteTarget::Regular(path) => {
                staged(path)?;
                None
            }
            WriteTarget::Special(path) => Some(open_special(path)?),
            WriteTarget::Socket(path) => {
                rustix::fs::access(path, Access::WRITE_OK)?;
                None
            }
            WriteTarget::Descriptor(number) => Some(open_descriptor(*number)?),
        };
        Ok(NamedOutput { target, opened })
    }

    pub fn is_stdout(&self) -> bool {
        self.target == WriteTarget::Descriptor(1)
    }

    /// `mode` is for a regular file.
    pub fn open(self, mode: u32) -> io::Result<NamedWriter> {
        let (path, sink) = match (self.target, self.opened) {
            (WriteTarget::Regular(path), _) => {
                let sink = match staged(&path)? {
                    StagedFile::Beside(file) => WriterSink::Staged { file, mode },
                    StagedFile::InPlace(file) => {
                        file.set_len(0)?;
                        WriterSink::Stream(file)
                    }
                };
                (path, sink)
            }
            (WriteTarget::Socket(path), _) => {
                let stream = UnixStream::connect(&path)?;
                (path, WriterSink::Socket(stream))
            }
            (WriteTarget::Special(path), Some(file)) => (path, WriterSink::Stream(file)),
            (WriteTarget::Special(path), None) => {
                let file = open_special(&path)?;
                (path, WriterSink::Stream(file))
            }
            (WriteTarget::Descriptor(number), opened) => {
                let file = opened.map_or_else(|| open_descriptor(number), Ok)?;
                (PathBuf::new(), WriterSink::Stream(file))
            }
        };
        Ok(NamedWriter { path, sink })
    }

    pub fn write_private(self, bytes: &[u8]) -> io::Result<()> {
        let mut writer = self.open(PRIVATE_MODE)?;
        writer.write_all(bytes)?;
        writer.finish()
    }
}

/// Opens a device or a FIFO. A FIFO that nothing reads is an error after [`READER_TIMEOUT`]: an open
/// that waits for ever could not be interrupted.
fn open_special(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits().cast_signed();
    let start = Instant::now();
    loop {
        match OpenOptions::new().write(true).custom_flags(flags).open(path) {
            Ok(file) => {
                let mode = rustix::fs::fcntl_getfl(&file)?;
                rustix::fs::fcntl_setfl(&file, mode - OFlags::NONBLOCK)?;
                return Ok(file);
            }
            Err(e) if e.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
                if start.elapsed() > READER_TIMEOUT {
                    return Err(io::Error::other("no process reads it"));
                }
                std::thread::sleep(READER_INTERVAL);
            }
            Err(e) => return Err(e),
        }
    }
}

/// The folder that a path's last part stands in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The number of `/proc/self/fd/NUMBER` and its other names.
fn descriptor(path: &Path) -> Option<u32> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let folder = std::fs::canonicalize(folder_of(path)).ok()?;
    let own = PathBuf::from(format!("/proc/{}/fd", std::process::id()));
    let thread = folder.starts_with(own.parent()?) && folder.ends_with("fd");
    (folder == own || thread).then_some(number)
}

/// A copy of an open descriptor, so that its position is shared with whoever opened it.
fn open_descriptor(number: u32) -> io::Result<File> {
    match number {
        1 => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        2 => Ok(io::stderr().as_fd().try_clone_to_owned()?.into()),
        n => OpenOptions::new().append(true).open(format!("/proc/self/fd/{n}")),
    }
}

/// A new file beside `path`, to be renamed over it.
fn staged(path: &Path) -> io::Result<StagedFile> {
    match NamedTempFile::new_in(folder_of(path)) {
        Ok(file) => Ok(StagedFile::Beside(file)),
        // The file may be writable where its folder is not: one that is mounted into a container.
        Err(e) => match OpenOptions::new().write(true).open(path) {
            Ok(file) => Ok(StagedFile::InPlace(file)),
            Err(_) => Err(e),
        },
    }
}

#[derive(Debug)]
enum StagedFile {
    Beside(NamedTempFile),
    /// Open, not yet emptied.
    InPlace(File),
}

/// Writes to a path that a user named. A regular file appears with [`NamedWriter::finish`]; a writer
/// that is dropped before leaves what was there.
#[derive(Debug)]
pub struct NamedWriter {
    path: PathBuf,
    sink: WriterSink,
}

#[derive(Debug)]
enum WriterSink {
    Staged { file: NamedTempFile, mode: u32 },
    Stream(File),
    Socket(UnixStream),
}

impl NamedWriter {
    /// `mode` is for a regular file.
    pub fn open(path: &Path, mode: u32) -> io::Result<NamedWriter> {
        NamedOutput::check(path)?.open(mode)
    }

    /// The mode that a regular file gets, where it is known only after the file was opened.
    pub fn set_mode(&mut self, new: u32) {
        if let WriterSink::Staged { mode, .. } = &mut self.sink {
            *mode = new;
        }
    }

    /// Puts a regular file in its place, on the disk.
    pub fn finish(self) -> io::Result<()> {
        match self.sink {
            WriterSink::Staged { file, mode } => {
                file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
                file.as_file().sync_all()?;
                match file.persist(&self.path) {
                    Ok(_) => Ok(()),
                    // A mount point cannot be replaced, and can be written.
                    Err(e) if e.error.kind() == ErrorKind::ResourceBusy => {
                        copy_into(e.file, &self.path)
                    }
                    Err(e) => Err(e.error),
                }
            }
            WriterSink::Stream(mut file) => file.flush(),
            WriterSink::Socket(mut stream) => stream.flush(),
        }
    }
}

fn copy_into(from: NamedTempFile, path: &Path) -> io::Result<()> {
    let mut from = from.reopen()?;
    let mut to = OpenOptions::new().write(true).truncate(true).open(path)?;
    io::copy(&mut from, &mut to)?;
    to.sync_all()
}

impl Write for NamedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            WriterSink::Staged { file, .. } => file.write(bytes),
            WriterSink::Stream(file) => file.write(bytes),
            WriterSink::Socket(stream) => stream.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            WriterSink::Staged { file, .. } => file.flush(),
            WriterSink::Stream(file) => file.flush(),
            WriterSink::Socket(stream) => stream.flush(),
        }
    }
}

/// Writes `bytes` to a path that a user named, readable by its owner alone.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    NamedOutput::check(path)?.write_private(bytes)
}

/// Reads a text file of the user's. One that is not UTF-8 is refused with its line and how to convert
/// it; a byte order mark is taken away.
pub fn read_text(path: &Path, kind: Kind) -> Result<String> {
    let bytes = std::fs::read(path)
        .map_err(|e| Error::new(kind, "cannot be read").at(path, None).because(e))?;
    let wrong = |line: Option<usize>, from: &str| {
        let shown = path.display();
        Error::new(kind, "not UTF-8")
            .at(path, line)
            .hint(format!("convert it: iconv -f {from} -t UTF-8 {shown} > NEW"))
    };
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(wrong(Some(1), "UTF-16"));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(e) => {
            let before = &bytes[..e.valid_up_to()];
            let line = before.iter().filter(|b| **b == b'\n').count() + 1;
            Err(wrong(Some(line), "ENCODING (CP949 is Korean Windows, CP1252 Western)"))
        }
    }
}

/// Bytes free for this user where `path` is.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn fifo(path: &Path) {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }

    #[test]
    fn a_regular_file_is_replaced_and_private() {
        let dir = folder();
        let path = dir.path().join("new/out");
        assert!(write_private(&path, b"one").is_err(), "no folder");
        std::fs::create_dir(dir.path().join("new")).unwrap();
        write_private(&path, b"one").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(mode(&path), PRIVATE_MODE);
        assert_eq!(std::fs::read_dir(dir.path().join("new")).unwrap().count(), 1);
    }

    #[test]
    fn an_unfinished_writer_leaves_the_old_file() {
        let dir = folder();
        let path = dir.path().join("out");
        std::fs::write(&path, "old").unwrap();
        let mut writer = NamedWriter::open(&path, PRIVATE_MODE).unwrap();
        writer.write_all(b"half").unwrap();
        drop(writer);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_and_its_target_is_replaced() {
        let dir = folder();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("sub/target"));
        symlink("middle", &link).unwrap();
        symlink("sub/target", dir.path().join("middle")).unwrap();
        for content in ["made", "replaced"] {
            write_private(&link, content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&target).unwrap(), content);
            assert!(link.is_symlink());
        }
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let dir = folder();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(WriteTarget::resolve(&dir.path().join("a")).is_err());
    }

    #[test]
    fn a_device_is_written_and_stays() {
        // Making a device needs root; a link to one needs nothing.
        let dir = folder();
        let link = dir.path().join("null");
        symlink("/dev/null", &link).unwrap();
        for path in [Path::new("/dev/null"), &link] {
            let target = WriteTarget::resolve(path).unwrap();
            assert_eq!(target, WriteTarget::Special("/dev/null".into()));
            write_private(path, b"x").unwrap();
        }
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        assert!(write_private(Path::new("/dev/full"), b"x").is_err());
    }

    #[test]
    fn a_fifo_brings_the_bytes_to_its_reader() {
        let dir = folder();
        let path = dir.path().join("pipe");
        fifo(&path);
        let reader = {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut text = String::new();
                File::open(path).unwrap().read_to_string(&mut text).map(|_| text)
            })
        };
        // The check must not close it: its reader would be at the end.
        let output = NamedOutput::check(&path).unwrap();
        output.write_private(b"through").unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), "through");
        assert!(std::fs::metadata(&path).unwrap().file_type().is_fifo());
    }

    #[test]
    fn names_of_standard_output_are_its_descriptor() {
        let dir = folder();
        let link = dir.path().join("stdout");
        symlink("/proc/self/fd/1", &link).unwrap();
        for path in [Path::new("/dev/stdout"), Path::new("/dev/fd/1"), &link] {
            let target = WriteTarget::resolve(path).unwrap();
            assert_eq!(target, WriteTarget::Descriptor(1), "{}", path.display());
            assert!(NamedOutput::check(path).unwrap().is_stdout());
        }
        let number = WriteTarget::resolve(Path::new("/dev/fd/2")).unwrap();
        assert_eq!(number, WriteTarget::Descriptor(2));
        assert!(WriteTarget::resolve(Path::new("/dev/fd/")).is_err());
    }

    #[test]
    fn text_in_another_encoding_is_refused_with_its_line() {
        let dir = folder();
        let file = dir.path().join("l.toml");
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            read_text(&file, Kind::Input)
        };
        let e = read(b"name = \"x\"\n# \xc7\xd1\xb1\xdb\n").unwrap_err();
        assert_eq!(e.file().unwrap().1, Some(2));
        assert!(e.hint_text().unwrap().contains("CP949"), "{e:?}");
        let e = read(b"\xff\xfen\0").unwrap_err();
        assert!(e.hint_text().unwrap().contains("-f UTF-16"), "{e:?}");
        assert_eq!(read("\u{feff}name = '한글'\n".as_bytes()).unwrap(), "name = '한글'\n");
    }

    #[test]
    fn a_folder_is_refused() {
        let dir = folder();
        assert!(WriteTarget::resolve(dir.path()).is_err());
        assert!(write_private(dir.path(), b"x").is_err());
    }
}
