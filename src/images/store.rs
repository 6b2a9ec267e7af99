//! The store: every file is named by its content, every built thing by what made it.
//!
//! ```text
//! ROOT/sha256/ab/abcd…       a fetched file, named by its digest (also sha512/)
//! ROOT/derived/KEY/          a built image: disk.qcow2, …, and SHA256SUMS of what was built
//! ROOT/partial/              downloads that have not ended, kept to be resumed
//! ROOT/tmp/KEY~XXXX/         things being built
//! ROOT/locks/                one lock file for every name in use
//! ```
//!
//! Invariants:
//! * What has its name is whole. Everything is written beside its place (in the same filesystem),
//!   synced, and renamed into it.
//! * The same thing is never made twice at once: its maker holds its lock (`flock`, which the
//!   kernel lets go of when the process dies, however it dies), and whoever comes second waits and
//!   then finds it.
//! * A thing in use is never collected: its user holds a [`Lease`], a shared hold on that lock.
//! * Files are 0600 and folders 0700: images hold what was baked into them.

use super::digest::{self, Algorithm, Digest, Hasher};
use crate::error::{Context, Error, FailureCause, Kind, Result};
use crate::event::{Event, Events, Unit};
use crate::lockfile::{Hold, LockFile};
use crate::wait::{Death, Patience, Poll};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long a partial download is kept for its resumption.
pub const PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long one waits for another process that makes the same thing, on the reference machine.
const OTHER_MAKER: Duration = Duration::from_secs(3600);

/// The list of what was built, in the style of `sha256sum`, inside every derived folder.
const SUMS: &str = "SHA256SUMS";

/// The name of a derived thing: what it is and the digest of all that makes it. The name part is
/// what [`Store::derived_of`] looks for.
pub fn derived_key(name: &str, inputs: &Digest) -> String {
    format!("{name}-{}", &inputs.hex()[..32])
}

#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    /// What the dead left and could not be removed, with the reasons.
    unswept: Arc<[String]>,
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and removes what killed processes
    /// left behind in it. What cannot be removed keeps nobody from the rest: [`Store::unswept`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Store> {
        let mut store = Store { root: root.into(), unswept: Arc::default() };
        let make = || -> io::Result<()> {
            private_dir(&store.root)?;
            for sub in ["sha256", "sha512", "derived", "partial", "tmp", "locks"] {
                private_dir(&store.root.join(sub))?;
            }
            Ok(())
        };
        make().map_err(|e| {
            Error::host("the image store cannot be written")
                .at(&store.root, None)
                .because(e)
                .hint("name a folder on a filesystem with room for images with --store DIR")
        })?;
        store.unswept = store.sweep(PARTIAL_AGE).into();
        Ok(store)
    }

    /// The store for those who only look: nothing is made, and it may not be there at all.
    pub fn read_only(root: impl Into<PathBuf>) -> Store {
        Store { root: root.into(), unswept: Arc::default() }
    }

    /// To be told as warnings: leftovers that could not be removed, and why.
    pub fn unswept(&self) -> &[String] {
        &self.unswept
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file with this content, if it is here. Stamps it as used.
    pub fn blob(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.blob_path(digest);
        stamp(&path).then_some(path)
    }

    /// Like [`Store::blob`], for those who only look: leaves the stamp alone.
    pub fn peek(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.blob_path(digest);
        path.exists().then_some(path)
    }

    /// The built thing with this key, if it is here. Stamps it as used.
    pub fn derived(&self, key: &str) -> Option<PathBuf> {
        let path = self.root.join("derived").join(checked_key(key).ok()?);
        stamp(&path).then_some(path)
    }

    /// All that was built under the name `name` (keys of [`derived_key`]), the last used first.
    /// Leaves the stamps alone.
    pub fn derived_of(&self, name: &str) -> Vec<PathBuf> {
        let mut found: Vec<(SystemTime, PathBuf)> = entries(&self.root.join("derived"))
            .unwrap_or_default()
            .into_iter()
            .filter(|p| file_name(p).rsplit_once('-').is_some_and(|(n, _)| n == name))
            .filter_map(|p| Some((fs::metadata(&p).ok()?.modified().ok()?, p)))
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, p)| p).collect()
    }

    /// Prepares to write the file with this digest, waiting while another process writes it.
    pub async fn begin_blob(&self, digest: &Digest, patience: &Patience) -> Result<Begin> {
        if let Some(path) = self.blob(digest) {
            return Ok(Begin::Present(path));
        }
        let lock = self.lock(&blob_lock(digest), &format!("{digest}"), patience).await?;
        if let Some(path) = self.blob(digest) {
            return Ok(Begin::Present(path));
        }
        let path = self.root.join("partial").join(blob_lock(digest));
        let file = private_file(&path)
            .doing(Kind::Host, || "the partial download could not be opened".into())
            .map_err(|e| e.at(&path, None))?;
        Ok(Begin::Write(Box::new(BlobWriter {
            file,
            hasher: Hasher::new(digest.algorithm()),
            written: 0,
            path,
            place: self.blob_path(digest),
            expected: *digest,
            _lock: lock,
        })))
    }

    /// The built thing with this key, made by `make` if it is not here. `make` writes into the
    /// folder that it is given (in this filesystem), which becomes the thing when it succeeds and
    /// is removed when it fails, is dropped, or its process dies.
    pub async fn make_derived<F, Fut>(
        &self,
        key: &str,
        patience: &Patience,
        make: F,
    ) -> Result<PathBuf>
    where
        F: FnOnce(PathBuf) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let key = checked_key(key)?;
        if let Some(path) = self.derived(key) {
            return Ok(path);
        }
        let _lock = self.lock(key, key, patience).await?;
        if let Some(path) = self.derived(key) {
            return Ok(path);
        }
        let temp = tempfile::Builder::new()
            .prefix(&format!("{key}~"))
            .tempdir_in(self.root.join("tmp"))
            .doing(Kind::Host, || "no folder could be made in the image store".into())
            .map_err(|e| e.at(&self.root, None))?;

        if let Err(e) = make(temp.path().to_owned()).await {
            // The guard would give up on other users' files. A dropped build's are swept.
            let _ = super::tree::remove(temp.path());
            return Err(e);
        }

        let made = temp.path().to_owned();
        let events = patience.events.clone();
        let what = format!("seal {key}");
        tokio::task::spawn_blocking(move || seal(&made, &what, &events))
            .await
            .map_err(|e| Error::internal("the sealing thread ended").because(e))?
            .doing(Kind::Host, || format!("`{key}` was built but could not be kept"))?;

        let place = self.root.join("derived").join(key);
        fs::rename(temp.path(), &place)
            .and_then(|()| sync_dir(&self.root.join("derived")))
            .doing(Kind::Host, || format!("`{key}` was built but could not be kept"))
            .map_err(|e| e.at(&place, None))?;
        // Its folder has gone to its place; there is nothing left for the guard to remove.
        let _ = temp.keep();
        stamp(&place);
        Ok(place)
    }

    /// Keeps a thing of the store from being collected while the lease lives. The kernel lets go
    /// of it when the process dies.
    pub fn lease(&self, path: &Path) -> Result<Lease> {
        let gone = || {
            Error::image("is no longer in the image store")
                .at(path, None)
                .hint("run the command again: it fetches or builds the image")
        };
        let name = self.lock_name_of(path).ok_or_else(gone)?;
        let take = || -> io::Result<Option<LockFile>> {
            let _moment = self.moment()?;
            self.try_lock(&name, Hold::Shared)
        };
        let lock = take()
            .doing(Kind::Host, || "the image store could not be locked".into())
            .map_err(|e| e.at(&self.root, None))?
            .ok_or_else(gone)?;
        // Collected between being found and being leased?
        if !path.exists() {
            return Err(gone());
        }
        Ok(Lease { _lock: lock })
    }

    /// Whether a thing is leased or being made.
    fn is_in_use(&self, path: &Path) -> io::Result<bool> {
        let Some(name) = self.lock_name_of(path) else { return Ok(true) };
        let _moment = self.moment()?;
        match LockFile::try_take_existing(&self.lock_path(&name), Hold::Exclusive) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            taken => Ok(taken?.is_none()),
        }
    }

    /// A look at a lock takes it for a moment: this keeps the look from refusing a lease.
    fn moment(&self) -> io::Result<LockFile> {
        LockFile::moment(&self.root.join(MOMENT))
    }

    /// Rehashes a fetched file; a file that is not what its name says is removed, and the error
    /// tells both digests.
    pub async fn verify_blob(&self, digest: &Digest, events: &Events) -> Result<PathBuf> {
        let path = self.blob(digest).ok_or_else(|| {
            Error::image(format!("{digest} is not in the store")).at(&self.root, None)
        })?;
        let found = digest::file_with_progress(
            &path,
            digest,
            &format!("verify {}", &digest.hex()[..12]),
            events,
        )
        .await?;
        if found != *digest {
            let _ = fs::remove_file(&path);
            return Err(Error::image(format!(
                "the stored file has changed: expected {digest}, found {found}"
            ))
            .at(&path, None)
            .hint("it was removed; fetch it again, and have a look at the disk it was on"));
        }
        Ok(path)
    }

    /// Rehashes everything in a built thing against the list that was made with it.
    pub async fn verify_derived(&self, key: &str, events: &Events) -> Result<PathBuf> {
        let folder = self.derived(key).ok_or_else(|| {
            Error::image(format!("`{key}` is not in the store")).at(&self.root, None)
        })?;
        let list = folder.join(SUMS);
        let text = fs::read_to_string(&list)
            .doing(Kind::Image, || "the list of what was built is missing".into())
            .map_err(|e| e.at(&list, None))?;
        for entry in super::sums::parse(&text) {
            let path = folder.join(&entry.name);
            let found = digest::file_with_progress(
                &path,
                &entry.digest,
                &format!("verify {}", entry.name),
                events,
            )
            .await?;
            if found != entry.digest {
                return Err(Error::image(format!(
                    "was changed after it was built: expected {}, found {found}",
                    entry.digest
                ))
                .at(&path, None)
                .hint(format!("remove {} and build it again", folder.display())));
            }
        }
        Ok(folder)
    }

    /// Bytes free for this user where the store is.
    pub fn free_bytes(&self) -> io::Result<u64> {
        crate::fsutil::free_bytes(&self.root)
    }

    /// Removes what `policy` does not name, used longest ago first, until at most its bound
    /// remains; and what killed makers left. What is leased or being made stays.
    pub fn gc(&self, policy: &GcPolicy) -> Result<GcOutcome> {
        let unreadable = || "the image store could not be read".to_owned();
        let mut items = self.leftovers(PARTIAL_AGE).doing(Kind::Host, unreadable)?;
        let leftovers = items.len();
        items.extend(self.items().doing(Kind::Host, unreadable)?);
        items[leftovers..].sort_by_key(|i| i.used);
        let named = policy.named_items(self);
        let mut out = GcOutcome { kept: items.iter().map(|i| i.bytes).sum(), ..Default::default() };
        for (at, item) in items.into_iter().enumerate() {
            if at >= leftovers && (out.kept <= policy.max_bytes || named.contains(&item.path)) {
                continue;
            }
            if self.collect(&item.path, policy.dry_run)? {
                out.kept -= item.bytes;
                out.freed += item.bytes;
                out.removed.push(GcItem { path: item.path, bytes: item.bytes });
            } else {
                out.in_use.push(item.path);
            }
        }
        Ok(out)
    }

    /// Removes one item, or finds out whether it could be removed; false where it is in use.
    fn collect(&self, path: &Path, dry_run: bool) -> Result<bool> {
        let collect = || -> io::Result<bool> {
            if dry_run {
                return Ok(!self.is_in_use(path)?);
            }
            let gone = self.remove(path)?;
            if gone && path.starts_with(self.root.join("partial")) {
                self.remove(&origin_of(path))?;
            }
            Ok(gone)
        };
        collect()
            .doing(Kind::Host, || "the item could not be removed from the image store".into())
            .map_err(|e| e.at(path, None))
    }

    /// Removes half-made things whose makers are dead, and partial downloads that were not touched
    /// for `age`. Returns what could not be removed.
    pub fn sweep(&self, age: Duration) -> Vec<String> {
        let mut problems = Vec::new();
        let mut each = |folder: &str, old: &dyn Fn(&Path) -> bool| {
            let folder = self.root.join(folder);
            let found = entries(&folder).unwrap_or_else(|e| {
                problems.push(format!("{}: {e}", folder.display()));
                Vec::new()
            });
            for path in found.into_iter().filter(|path| old(path)) {
                if let Err(e) = self.remove(&path) {
                    problems.push(format!("{} could not be removed: {e}", path.display()));
                }
            }
        };
        each("tmp", &|_| true);
        each("partial", &|path| is_older(path, age));
        problems
    }

    /// What [`Store::sweep`] would remove, whoever holds it. A partial download is one item with
    /// the note of its origin.
    fn leftovers(&self, age: Duration) -> io::Result<Vec<Item>> {
        let mut paths = entries(&self.root.join("tmp"))?;
        let partial = entries(&self.root.join("partial"))?;
        paths.extend(partial.into_iter().filter(|path| {
            let note = file_name(path).strip_suffix(ORIGIN_SUFFIX);
            let is_alone = note.is_none_or(|name| !path.with_file_name(name).exists());
            is_alone && is_older(path, age)
        }));
        sized(paths)
    }

    /// Every image, fetched or built.
    fn items(&self) -> io::Result<Vec<Item>> {
        let mut paths = entries(&self.root.join("derived"))?;
        for algorithm in Algorithm::ALL {
            for shelf in entries(&self.root.join(algorithm.name()))? {
                paths.extend(entries(&shelf)?);
            }
        }
        sized(paths)
    }

    /// Removes a thing unless it is leased or being made; says whether it is gone.
    fn remove(&self, path: &Path) -> io::Result<bool> {
        let Some(name) = self.lock_name_of(path) else { return Ok(false) };
        let Some(lock) = self.try_lock(&name, Hold::Exclusive)? else { return Ok(false) };
        let removed = if path.starts_with(self.root.join("tmp")) {
            super::tree::remove(path)
        } else if path.is_dir() {
            // Out of its place at once, so that nobody finds half of it.
            let away = self.root.join("tmp").join(format!("{name}~gone.{}", std::process::id()));
            match fs::rename(path, &away) {
                Ok(()) => super::tree::remove(&away),
                Err(e) => Err(e),
            }
        } else {
            fs::remove_file(path)
        };
        // The lock file goes with it, while it is held: whoever waits for it notices.
        let _ = lock.remove();
        match removed {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(digest.algorithm().name()).join(&hex[..2]).join(&hex)
    }

    /// The lock that guards a path of this store; `None` for paths that are not of the store.
    fn lock_name_of(&self, path: &Path) -> Option<String> {
        let rest = path.strip_prefix(&self.root).ok()?;
        let parts: Vec<&str> = rest.iter().map(|p| p.to_str()).collect::<Option<_>>()?;
        match parts[..] {
            ["derived", key, ..] => Some(key.to_owned()),
            ["tmp", name, ..] => Some(name.split('~').next()?.to_owned()),
            ["partial", name] => Some(name.trim_end_matches(ORIGIN_SUFFIX).to_owned()),
            [algorithm @ ("sha256" | "sha512"), _, hex] => Some(format!("{algorithm}_{hex}")),
            _ => None,
        }
    }

    /// Takes the lock `name`, saying what is being waited for while another process holds it.
    async fn lock(&self, name: &str, what: &str, patience: &Patience) -> Result<LockFile> {
        let attempt = || {
            self.try_lock(name, Hold::Exclusive)
                .doing(Kind::Host, || "the image store could not be locked".into())
                .map_err(|e| e.at(&self.root, None))
        };
        if let Some(lock) = attempt()? {
            return Ok(lock);
        }
        patience.events.info(format!("{what} is being made by another process: waiting for it"));
        let held = Duration::from_millis(200);
        let waited = patience
            .until(
                &format!("the other process that makes {what}"),
                OTHER_MAKER,
                held,
                &Death::never(),
                || async {
                    match attempt() {
                        Ok(Some(lock)) => Poll::Ready(lock),
                        Ok(None) => Poll::NotYet("its lock is still held".into()),
                        Err(e) => Poll::Failed(e),
                    }
                },
            )
            .await;
        waited.map_err(|e| match e.cause() {
            Some(cause @ FailureCause::TimedOut) => Error::image(e.message().to_owned())
                .caused_by(cause)
                .at(self.lock_path(name), None)
                .hint("`fuser` on that file tells which process it is"),
            _ => e,
        })
    }

    /// `None` while another holder is in the way.
    fn try_lock(&self, name: &str, hold: Hold) -> io::Result<Option<LockFile>> {
        LockFile::try_take(&self.lock_path(name), hold)
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(name)
    }
}

/// A lease on the image that the file at `path` belongs to; `None` for a file that is in no store,
/// or in one where nothing can be removed by us.
pub fn lease_of(path: &Path) -> Result<Option<Lease>> {
    let stores = path.ancestors().skip(1).map(Store::read_only);
    let mut of_path = stores.filter(|store| store.lock_name_of(path).is_some());
    let Some(store) = of_path.find(|store| store.root.join("locks").is_dir()) else {
        return Ok(None);
    };
    if rustix::fs::access(store.root.join("locks"), rustix::fs::Access::WRITE_OK).is_err() {
        return Ok(None);
    }
    store.lease(path).map(Some)
}

/// What [`Store::begin_blob`] found.
pub enum Begin {
    Present(PathBuf),
    Write(Box<BlobWriter>),
}

/// A thing of the store in use. Held for as long as the thing must stay.
#[derive(Debug)]
pub struct Lease {
    _lock: LockFile,
}

/// What [`Store::gc`] may remove.
#[derive(Clone, Debug, Default)]
pub struct GcPolicy {
    /// Files of images that stay, whatever their age. Files that are in no store are passed over.
    pub named: BTreeSet<PathBuf>,
    /// Images that are not named go until all together take at most so many bytes.
    pub max_bytes: u64,
    /// Only say what would be removed.
    pub dry_run: bool,
}

impl GcPolicy {
    /// The items of `store` that are named, as the store calls them. A name may lead to the store
    /// over a symbolic link.
    fn named_items(&self, store: &Store) -> BTreeSet<PathBuf> {
        let root = fs::canonicalize(&store.root).unwrap_or_else(|_| store.root.clone());
        let item = |path: &PathBuf| {
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            let rest = path.strip_prefix(&root).or(path.strip_prefix(&store.root)).ok()?;
            let parts = if rest.starts_with("derived") { 2 } else { 3 };
            Some(store.root.join(rest.iter().take(parts).collect::<PathBuf>()))
        };
        self.named.iter().filter_map(item).collect()
    }
}

/// What [`Store::gc`] did. Bytes are those on disk (sparse files count what they hold).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcOutcome {
    pub kept: u64,
    pub freed: u64,
    pub removed: Vec<GcItem>,
    /// Would have gone, but is leased or being made.
    pub in_use: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcItem {
    pub path: PathBuf,
    pub bytes: u64,
}

struct Item {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

const ORIGIN_SUFFIX: &str = ".origin";

/// In the root.
const MOMENT: &str = ".lock";

/// A file on its way into the store: every byte goes through its hash, and only the digest it was
/// begun for lets it in. Dropped, it leaves what was written to be resumed.
pub struct BlobWriter {
    file: File,
    hasher: Hasher,
    written: u64,
    path: PathBuf,
    place: PathBuf,
    expected: Digest,
    _lock: LockFile,
}

impl BlobWriter {
    pub fn expected(&self) -> &Digest {
        &self.expected
    }

    /// The partial file: what it holds may be looked at, not changed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes hashed and written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The digest of what is written so far.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Takes up what an earlier process left, hashing it again: the bytes on disk count, not what
    /// was remembered of them. An error of `step` (given the bytes read) ends it. Returns how many
    /// bytes there are.
    pub fn take_up(&mut self, step: impl FnMut(u64) -> io::Result<()>) -> io::Result<u64> {
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Hasher::new(self.expected.algorithm());
        self.written = 0;
        self.written = digest::pump(&self.file, &mut self.hasher, step)?;
        Ok(self.written)
    }

    /// Throws away what was written and starts at the first byte.
    pub fn restart(&mut self) -> io::Result<()> {
        self.forget_origin();
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Hasher::new(self.expected.algorithm());
        self.written = 0;
        Ok(())
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Where the partial file comes from, as the writer noted it with [`BlobWriter::note_origin`].
    pub fn origin(&self) -> Option<String> {
        let mut text = String::new();
        File::open(self.origin_path()).ok()?.take(64 << 10).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Notes beside the partial file where it comes from. Written before the first byte.
    pub fn note_origin(&self, text: &str) -> io::Result<()> {
        let path = self.origin_path();
        let mut file = private_file(&path)?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())
    }

    fn origin_path(&self) -> PathBuf {
        origin_of(&self.path)
    }

    fn forget_origin(&self) {
        // Nothing to forget is fine too.
        let _ = fs::remove_file(self.origin_path());
    }

    /// Removes what was written.
    pub fn discard(self) {
        self.forget_origin();
        let _ = fs::remove_file(&self.path);
    }

    /// Puts the file into its place. Refuses a file that is not what it was begun for: ask
    /// [`BlobWriter::digest`] first where that can happen.
    pub fn finish(self) -> Result<PathBuf> {
        let found = self.digest();
        if found != self.expected {
            let expected = self.expected;
            self.discard();
            return Err(Error::image(format!("wrong digest: expected {expected}, got {found}")));
        }
        let shelf = self.place.parent().expect("a blob lies in a folder").to_owned();
        let land = || -> io::Result<()> {
            self.file.sync_all()?;
            private_dir(&shelf)?;
            fs::rename(&self.path, &self.place)?;
            sync_dir(&shelf)
        };
        land()
            .doing(Kind::Host, || "the file could not be kept".into())
            .map_err(|e| e.at(&self.place, None))?;
        self.forget_origin();
        stamp(&self.place);
        Ok(self.place)
    }
}

fn blob_lock(digest: &Digest) -> String {
    format!("{}_{}", digest.algorithm().name(), digest.hex())
}

/// Keys become names of folders and locks. `_` and `~` are the store's own.
fn checked_key(key: &str) -> Result<&str> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    if !key.is_empty() && key.len() <= 128 && key.chars().all(fine) && !key.starts_with(['.', '-'])
    {
        Ok(key)
    } else {
        Err(Error::internal(format!("`{}` is no key of the store", key.escape_default())))
    }
}

/// Marks a thing as used now; says whether it is there. The modification time is the stamp: access
/// times change by merely looking, and not at all on some mounts.
fn stamp(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => {
            // On a store that is read-only for us there is nothing to collect by age either.
            let _ = file.set_modified(SystemTime::now());
            true
        }
        Err(_) => false,
    }
}

/// Makes what was built private and durable, and lists its digests in it.
fn seal(folder: &Path, what: &str, events: &Events) -> io::Result<()> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    let mut i = 0;
    while i < folders.len() {
        for path in entries(&folders[i])? {
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_file() {
                files.push(path);
            } else {
                return Err(io::Error::other(format!(
                    "{} is neither a file nor a folder",
                    path.display()
                )));
            }
        }
        i += 1;
    }
    files.sort();
    let mut list = String::new();
    for (i, path) in files.iter().enumerate() {
        let relative = path.strip_prefix(folder).expect("found inside it");
        let name = relative.to_str().filter(|n| !n.contains('\n')).ok_or_else(|| {
            io::Error::other(format!("{} has a name that cannot be listed", path.display()))
        })?;
        list += &format!("{}  {name}\n", digest::file(path, Algorithm::Sha256)?.hex());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        File::open(path)?.sync_all()?;
        events.send(Event::Progress {
            what: what.into(),
            done: i as u64 + 1,
            total: Some(files.len() as u64),
            unit: Unit::Items,
        });
    }
    events.send(Event::ProgressEnded { what: what.into(), ok: true });
    let mut sums = private_file(&folder.join(SUMS))?;
    sums.set_len(0)?;
    sums.write_all(list.as_bytes())?;
    sums.sync_all()?;
    for folder in folders.iter().rev() {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        sync_dir(folder)?;
    }
    Ok(())
}

fn private_dir(path: &Path) -> io::Result<()> {
    // `recursive` gives the mode to every folder it makes and is content with one that is there.
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens for reading and writing, keeping what is in it.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The paths in a folder; none if it is gone.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(all) => all.map(|e| e.map(|e| e.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

/// The note beside a partial download.
fn origin_of(partial: &Path) -> PathBuf {
    let mut name = partial.as_os_str().to_owned();
    name.push(ORIGIN_SUFFIX);
    name.into()
}

fn is_older(path: &Path, age: Duration) -> bool {
    let touched = fs::metadata(path).and_then(|meta| meta.modified());
    touched.is_ok_and(|at| at.elapsed().unwrap_or_default() > age)
}

fn sized(paths: Vec<PathBuf>) -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    for path in paths {
        // Another process may be collecting too.
        let (Ok(meta), Ok(bytes)) = (fs::symlink_metadata(&path), disk_usage(&path)) else {
            continue;
        };
        let note = disk_usage(&origin_of(&path)).unwrap_or(0);
        items.push(Item { used: meta.modified()?, bytes: bytes + note, path });
    }
    Ok(items)
}

fn disk_usage(path: &Path) -> io::Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in entries(path)? {
            bytes += disk_usage(&entry)?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
