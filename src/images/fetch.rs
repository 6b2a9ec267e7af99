//! Downloads: from a pin's addresses into the store, through its hash.
//!
//! The addresses are tried in order, and the error at the end tells what was wrong with each. A
//! connection that breaks is taken up where it broke (see [`resume`]), now or by a later process.
//! What lands has the digest of the manifest and is the image it claims to be; nothing else
//! does.
//!
//! ureq blocks, so a thread outside the runtime does the work: a runtime that ends waits for its own
//! threads, and a name that takes long to resolve must not hold up Ctrl-C. When the future is
//! dropped, the thread's sockets are shut down and it ends at once.
//!
//! [`Publisher`] reads what is beside an image: checksum files and indexes.

mod publisher;
mod request;
mod resume;
#[cfg(test)]
pub(super) mod server;
mod url;

pub use publisher::{PublishedFile, Publisher};

use super::digest::Digest;
use super::inspect::{self, Looks};
use super::manifest::{Format, Manifest, Pin};
use super::store::{Begin, BlobWriter, Store};
use crate::error::{Context, Error, Kind, Result};
use crate::event::{Event, Events, Unit};
use crate::outbound::{ProxySettings, RootSource};
use crate::wait::Patience;
use request::Requests;
use resume::{ContentRange, Origin};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

/// Read and written at once.
const CHUNK: usize = 256 << 10;
/// Looked at before anything else of an answer is believed. A boot sector ends here.
const FIRST_LOOK: usize = 512;
const REDIRECTS: usize = 10;
/// How often one address may break off and be taken up again.
const TAKE_UPS: usize = 3;
/// How often addresses with a passing trouble are asked again.
const RETRIES: u32 = 3;
/// The longest pause that a server's `Retry-After` gets.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A pause ends within so long when the fetch is dropped.
const STOP_INTERVAL: Duration = Duration::from_millis(50);
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// How to fetch.
#[derive(Clone, Debug)]
pub struct Options {
    /// An address that sends no byte for so long has failed.
    pub stall: Duration,
    /// An address that cannot be reached for so long (each of name, connection) has failed.
    pub connect: Duration,
    /// Nothing larger is fetched, in bytes.
    pub max_bytes: u64,
    /// Free bytes to leave on the store's filesystem.
    pub leave_free: u64,
    /// The pause before an address that had a passing trouble is asked again; it doubles.
    pub pause: Duration,
    pub proxies: ProxySettings,
    /// Whose certificates are believed.
    pub roots: RootSource,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            stall: Duration::from_secs(30),
            connect: Duration::from_secs(15),
            max_bytes: 32 << 30,
            leave_free: 256 << 20,
            pause: Duration::from_secs(2),
            proxies: ProxySettings::default(),
            roots: RootSource::default(),
        }
    }
}

/// Fetches a pinned image into the store, if it is not there, and returns its path.
///
/// Progress is reported as `fetch NAME`. Waits (with a note) while another process fetches it.
/// Dropping the future ends the download and keeps what came for the next time.
pub async fn fetch(
    store: &Store,
    manifest: &Manifest,
    options: &Options,
    patience: &Patience,
) -> Result<PathBuf> {
    let Some(pin) = manifest.pin() else {
        return Err(Error::input(format!("`{}` is built, not fetched", manifest.name))
            .at(&manifest.path, None)
            .hint(format!("stackproof images build {}", manifest.name)));
    };
    let writer = match store.begin_blob(&pin.digest, patience).await? {
        Begin::Present(path) => return Ok(path),
        Begin::Write(writer) => writer,
    };
    let requests = Requests::new(options, pin.urls(), &patience.events)?;
    let (agent, stop) = (requests.agent.clone(), Arc::<AtomicBool>::default());
    let job = Job {
        name: manifest.name.clone(),
        manifest: manifest.path.clone(),
        format: manifest.format,
        pin: pin.clone(),
        resumed: false,
        reported: None,
        writer,
        store: store.clone(),
        options: options.clone(),
        requests,
        events: patience.events.clone(),
        stop: stop.clone(),
    };
    run_apart(&format!("fetch {}", manifest.name), agent, stop, || job.run()).await
}

/// Runs `job` in a thread of its own. When this future is dropped, `stop` is set and the sockets
/// of `agent` are shut down.
async fn run_apart<T: Send + 'static>(
    name: &str,
    agent: Agent,
    stop: Arc<AtomicBool>,
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    // Dropped at the end of this function, or with it.
    let _cancel = Cancel { agent: Some(agent), stop };
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Not received when the future was dropped.
            let _ = send.send(job());
        })
        .doing(Kind::Host, || "no thread could be started".into())?;
    receive.await.map_err(|_| Error::internal("the download's thread ended without a result"))?
}

/// Ends the thread when it is dropped.
struct Cancel {
    agent: Option<Agent>,
    stop: Arc<AtomicBool>,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(agent) = self.agent.take() {
            agent.shutdown();
        }
    }
}

/// How a try of one address failed.
enum Failed {
    /// The connection broke after some bytes came: the same address may go on.
    Again(Reason),
    /// This address is of no use now; another may be.
    Next(Reason),
    /// No address can help.
    Stop(Error),
}

struct Reason {
    what: String,
    hint: Option<String>,
    evidence: Vec<String>,
    /// Whether the same address may do better in a while, and what pause it asked for.
    passing: Option<Duration>,
}

impl From<String> for Reason {
    fn from(what: String) -> Reason {
        Reason { what, hint: None, evidence: Vec::new(), passing: None }
    }
}

impl Reason {
    fn hint(mut self, hint: impl Into<String>) -> Reason {
        self.hint = Some(hint.into());
        self
    }
    /// Worth another try after a pause.
    fn passing(mut self, pause: Option<Duration>) -> Reason {
        self.passing = Some(pause.unwrap_or_default());
        self
    }
}

fn next<T>(what: impl Into<String>) -> Result<T, Failed> {
    Err(Failed::Next(what.into().into()))
}

/// What the head of an answer says.
struct Answer {
    body: ureq::BodyReader<'static>,
    /// Bytes of the whole file, where it says so.
    total: Option<u64>,
    content_type: String,
    /// Where its first byte belongs. 0 for a whole file.
    from: u64,
    origin: Origin,
}

struct Job {
    name: String,
    manifest: PathBuf,
    format: Format,
    pin: Pin,
    writer: Box<BlobWriter>,
    /// Whether what is written came in more than one answer.
    resumed: bool,
    reported: Option<Instant>,
    store: Store,
    options: Options,
    requests: Requests,
    events: Events,
    stop: Arc<AtomicBool>,
}

impl Job {
    fn run(mut self) -> Result<PathBuf> {
        let done = self.try_all();
        self.events.send(Event::ProgressEnded { what: self.what(), ok: done.is_ok() });
        if self.stopped() {
            // What came stays, whatever became of this try.
            return Err(Error::interrupted());
        }
        match done {
            Ok(()) => self.writer.finish(),
            Err(e) => {
                if self.writer.written() == 0 {
                    self.writer.discard();
                }
                Err(e)
            }
        }
    }

    fn try_all(&mut self) -> Result<()> {
        if self.take_up()? {
            return self.judge_image().map_err(|e| e.while_doing("an earlier download"));
        }
        let mut failures: Vec<(String, Reason)> = Vec::new();
        for url in self.pin.urls().map(str::to_owned).collect::<Vec<_>>() {
            match self.try_one(&url)? {
                None => return Ok(()),
                Some(reason) => failures.push((url, reason)),
            }
        }
        for retry in 0..RETRIES {
            let asked = failures.iter().filter_map(|(_, reason)| reason.passing).max();
            let Some(asked) = asked else { break };
            self.pause((self.options.pause * 2u32.pow(retry)).max(asked.min(MAX_PAUSE)))?;
            for (url, reason) in failures.iter_mut().filter(|(_, r)| r.passing.is_some()) {
                match self.try_one(url)? {
                    None => return Ok(()),
                    Some(new) => *reason = new,
                }
            }
        }
        Err(self.all_failed(failures))
    }

    /// Fetches from one address, however often it breaks off. Gives the reason of its failure.
    fn try_one(&mut self, url: &str) -> Result<Option<Reason>> {
        let mut again = 0;
        loop {
            let before = self.writer.written();
            match self.attempt(url) {
                Ok(()) => return Ok(None),
                Err(Failed::Stop(e)) => return Err(e),
                Err(Failed::Next(reason)) => return Ok(Some(reason)),
                Err(Failed::Again(reason)) => {
                    again += 1;
                    if again > TAKE_UPS || self.writer.written() == before {
                        return Ok(Some(reason));
                    }
                    self.events.detail(format!("{url}: {}: taking it up again", reason.what));
                }
            }
            if self.stopped() {
                return Err(Error::interrupted());
            }
        }
    }

    fn pause(&self, pause: Duration) -> Result<()> {
        let text = format!("{}: asking again in {:.0} s", self.name, pause.as_secs_f32());
        self.events.info(text);
        let start = Instant::now();
        while start.elapsed() < pause {
            if self.stopped() {
                return Err(Error::interrupted());
            }
            std::thread::sleep(STOP_INTERVAL.min(pause - start.elapsed().min(pause)));
        }
        Ok(())
    }

    /// Hashes what an earlier process left of it. True if that was everything.
    fn take_up(&mut self) -> Result<bool> {
        let stop = self.stop.clone();
        let taken = self.writer.take_up(|_| {
            if stop.load(Ordering::Relaxed) {
                Err(io::ErrorKind::Interrupted.into())
            } else {
                Ok(())
            }
        });
        if self.stopped() {
            return Err(Error::interrupted());
        }
        let have = taken.map_err(|e| self.cannot_write(e))?;
        if have > 0 && self.writer.digest() == self.pin.digest {
            return Ok(true);
        }
        self.resumed = have > 0;
        Ok(false)
    }

    /// Fetches from one address, taking up what is there where that is safe.
    fn attempt(&mut self, url: &str) -> Result<(), Failed> {
        let mut answer = self.ask(url)?;
        // Believed only after its first bytes: a page with another size should be called a page.
        let mut first = Vec::with_capacity(FIRST_LOOK);
        if answer.from == 0 {
            self.read_first(&mut answer, &mut first)?;
            self.judge_first(&first, &answer)?;
        }
        self.judge_size(answer.total)?;
        if answer.from == 0 {
            // Only now: a page in place of the file must not cost what another address gave.
            self.restart()?;
            let origin = serde_json::to_string(&answer.origin).expect("strings and numbers");
            self.writer.note_origin(&origin).map_err(|e| Failed::Stop(self.cannot_write(e)))?;
            self.resumed = false;
        } else {
            self.resumed = true;
        }
        self.check_room(answer.total)?;
        self.accept(&first, answer.total)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.read(&mut answer.body, &mut chunk)? {
                0 => break,
                n => self.accept(&chunk[..n], answer.total)?,
            }
        }
        self.report(answer.total, true);
        let have = self.writer.written();
        if let Some(total) = answer.total.or(self.pin.size)
            && have < total
        {
            return Err(Failed::Again(
                format!("the connection ended after {have} of {total} bytes").into(),
            ));
        }
        self.judge_digest()?;
        self.judge_image()
            .map_err(|e| Failed::Stop(e.while_doing(format!("the file from {}", url::shown(url)))))
    }

    /// Asks for what is missing, or for all of it, so that what follows belongs at `from`.
    fn ask(&self, url: &str) -> Result<Answer, Failed> {
        let have = self.writer.written();
        let origin =
            self.writer.origin().and_then(|text| serde_json::from_str::<Origin>(&text).ok());
        if let Some(origin) = origin
            && have > 0
            && origin.url == url
            && self.pin.size.or(origin.total).is_none_or(|total| have < total)
            && let Some(validator) = origin.validator()
        {
            let response = self.requests.get(url, Some((have, validator)))?;
            match response.status() {
                StatusCode::PARTIAL_CONTENT => {
                    let range = text_of(&response, header::CONTENT_RANGE)
                        .and_then(|h| ContentRange::parse(&h));
                    let etag = text_of(&response, header::ETAG);
                    let same_etag = etag.is_none() || origin.etag.is_none() || etag == origin.etag;
                    if let Some(range) = range
                        && range.continues(have, &origin)
                        && same_etag
                    {
                        return Ok(Answer {
                            total: range.total.or(origin.total),
                            content_type: String::new(),
                            from: have,
                            origin,
                            body: response.into_body().into_reader(),
                        });
                    }
                    self.events
                        .detail(format!("{url}: another part than was asked for: from the start"));
                }
                // It is another file now, or the server knows no ranges: this is all of it.
                StatusCode::OK => return self.whole(url, response),
                StatusCode::RANGE_NOT_SATISFIABLE => {}
                _ => return Err(Failed::Next(self.refused(url, &response))),
            }
        }
        let response = self.requests.get(url, None)?;
        match response.status() {
            StatusCode::OK => self.whole(url, response),
            _ => Err(Failed::Next(self.refused(url, &response))),
        }
    }

    /// Why an answer without the file is of no use.
    fn refused(&self, url: &str, response: &Response<Body>) -> Reason {
        let status = response.status();
        let reason = Reason::from(format!("{}{}", answered(status), self.requests.through(url)));
        match status.as_u16() {
            404 | 410 if self.pin.newest.is_some() => reason.hint(format!(
                "the publisher has removed this build: `stackproof images update {}` writes the \
                 newest one into {}",
                self.name,
                self.manifest.display()
            )),
            404 | 410 => reason.hint(format!(
                "the file has moved: look where it is now, and put that URL into {}",
                self.manifest.display()
            )),
            407 => reason
                .hint("put user and password into the proxy's URL: http://USER:PASSWORD@HOST:PORT"),
            401 | 403 => reason.hint(format!(
                "the server refuses this file: open the address in a browser, and put one that \
                 works into {}",
                self.manifest.display()
            )),
            // As curl's --retry: the server is busy or restarts.
            408 | 425 | 429 | 500 | 502 | 503 | 504 => reason.passing(retry_after(response)),
            _ => reason,
        }
    }

    /// An answer that holds the whole file.
    fn whole(&self, url: &str, response: Response<Body>) -> Result<Answer, Failed> {
        if let Some(coding) = text_of(&response, header::CONTENT_ENCODING)
            && !coding.eq_ignore_ascii_case("identity")
        {
            return next(format!("the server answered in the encoding `{coding}`, unasked"));
        }
        // Read from the header: a body that ends with its connection has none.
        let total = text_of(&response, header::CONTENT_LENGTH).and_then(|n| n.parse().ok());
        Ok(Answer {
            total,
            content_type: text_of(&response, header::CONTENT_TYPE).unwrap_or_default(),
            from: 0,
            origin: Origin {
                url: url.to_owned(),
                etag: text_of(&response, header::ETAG),
                last_modified: text_of(&response, header::LAST_MODIFIED),
                total,
            },
            body: response.into_body().into_reader(),
        })
    }

    fn read_first(&self, answer: &mut Answer, first: &mut Vec<u8>) -> Result<(), Failed> {
        let mut chunk = [0; FIRST_LOOK];
        while first.len() < FIRST_LOOK {
            let want = FIRST_LOOK - first.len();
            match self.read(&mut answer.body, &mut chunk[..want])? {
                0 => break,
                n => first.extend_from_slice(&chunk[..n]),
            }
        }
        Ok(())
    }

    fn read(&self, body: &mut impl Read, chunk: &mut [u8]) -> Result<usize, Failed> {
        if self.stopped() {
            return Err(Failed::Stop(Error::interrupted()));
        }
        body.read(chunk).map_err(|e| {
            let why = self.requests.explain(&ureq::Error::from(e));
            Failed::Again(format!("{why}, after {} bytes", self.writer.written()).into())
        })
    }

    /// Refuses an answer that cannot be the image, before it is downloaded.
    fn judge_first(&self, first: &[u8], answer: &Answer) -> Result<(), Failed> {
        let looks = inspect::sniff(first);
        match (&looks, self.format) {
            (Looks::Qcow2, Format::Qcow2) | (Looks::Disk, Format::Raw) => Ok(()),
            (Looks::Page | Looks::Text(_), _) => {
                let text = String::from_utf8_lossy(first);
                let lines = text.lines().map(str::trim).filter(|l| !l.is_empty()).take(3);
                Err(Failed::Next(Reason {
                    what: format!(
                        "the server answered with a page, not an image ({})",
                        if answer.content_type.is_empty() {
                            "no content type"
                        } else {
                            &answer.content_type
                        }
                    ),
                    hint: Some(
                        "open the address in a browser: the file may have moved, or a proxy or \
                         login page answers in its place"
                            .into(),
                    ),
                    evidence: lines.map(printable).collect(),
                    passing: None,
                }))
            }
            (Looks::Empty, _) => next("the server answered with an empty file"),
            (looks, format) => {
                next(format!("the server answered with {looks}, not with a {format} image"))
            }
        }
    }

    fn judge_size(&self, total: Option<u64>) -> Result<(), Failed> {
        match (total, self.pin.size) {
            (Some(total), Some(size)) if total != size => {
                next(format!("the server's file has {total} bytes, the manifest says {size}"))
            }
            (Some(total), _) if total > self.options.max_bytes => next(format!(
                "the server's file has {total} bytes, the limit is {}",
                self.options.max_bytes
            )),
            _ => Ok(()),
        }
    }

    fn check_room(&self, total: Option<u64>) -> Result<(), Failed> {
        let Some(total) = total.or(self.pin.size) else { return Ok(()) };
        let missing = total - self.writer.written().min(total);
        let free = self.store.free_bytes().map_err(|e| Failed::Stop(self.cannot_write(e)))?;
        if missing.saturating_add(self.options.leave_free) <= free {
            return Ok(());
        }
        Err(Failed::Stop(
            Error::host(format!(
                "no room for {}: {} MiB are missing of it, {} MiB are free and {} MiB are to stay so",
                self.name,
                missing.div_ceil(1 << 20),
                free >> 20,
                self.options.leave_free >> 20
            ))
            .at(self.store.root(), None)
            .hint("free some space, or keep the image store on another filesystem"),
        ))
    }

    /// Writes bytes that came, within the bounds that were announced.
    fn accept(&mut self, bytes: &[u8], total: Option<u64>) -> Result<(), Failed> {
        let will_have = self.writer.written() + bytes.len() as u64;
        let bound = self.pin.size.unwrap_or(self.options.max_bytes);
        if will_have > bound {
            self.restart()?;
            return next(format!("the server sends more than the {bound} bytes that are expected"));
        }
        self.writer.write(bytes).map_err(|e| Failed::Stop(self.cannot_write(e)))?;
        self.report(total, false);
        Ok(())
    }

    fn judge_digest(&mut self) -> Result<(), Failed> {
        let got: Digest = self.writer.digest();
        if got == self.pin.digest {
            return Ok(());
        }
        let have = self.writer.written();
        let mixed = self.resumed;
        self.restart()?;
        let reason = Reason {
            what: format!("wrong digest: expected {}, got {got} ({have} bytes)", self.pin.digest),
            hint: Some(format!(
                "the file was changed: if its publisher released a new one, put the digest of the \
                 publisher's checksum file into {}",
                self.manifest.display()
            )),
            evidence: Vec::new(),
            passing: None,
        };
        if mixed {
            // The part from before may be the wrong one: the address deserves a whole try.
            self.resumed = false;
            return Err(Failed::Again(reason));
        }
        Err(Failed::Next(reason))
    }

    /// The digest was right; the image must be harmless all the same before it has a name.
    fn judge_image(&mut self) -> Result<()> {
        let judged =
            inspect::inspect(self.writer.path()).and_then(|i| i.require(Some(self.format)));
        match judged {
            Ok(_) => Ok(()),
            Err(e) => {
                self.writer.restart().map_err(|e| self.cannot_write(e))?;
                Err(e)
            }
        }
    }

    fn restart(&mut self) -> Result<(), Failed> {
        self.writer.restart().map_err(|e| Failed::Stop(self.cannot_write(e)))
    }

    fn all_failed(&self, mut failures: Vec<(String, Reason)>) -> Error {
        let hint = failures.iter_mut().find_map(|(_, r)| r.hint.take()).unwrap_or_else(|| {
            format!(
                "`stackproof images fetch {}` tries again, and goes on where it stopped",
                self.name
            )
        });
        let message = match &failures[..] {
            [(_, only)] => format!("{} could not be fetched: {}", self.name, only.what),
            all => {
                format!("{} could not be fetched from any of {} addresses", self.name, all.len())
            }
        };
        let evidence = failures.into_iter().flat_map(|(url, reason)| {
            std::iter::once(format!("{}: {}", url::shown(&url), reason.what))
                .chain(reason.evidence.into_iter().map(|line| format!("  {line}")))
        });
        Error::image(message).at(&self.manifest, None).evidence(evidence).hint(hint)
    }

    fn cannot_write(&self, e: io::Error) -> Error {
        Error::host(format!("the download of {} could not be written", self.name))
            .at(self.writer.path(), None)
            .because(e)
    }

    fn report(&mut self, total: Option<u64>, last: bool) {
        if last || self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            self.reported = Some(Instant::now());
            self.events.send(Event::Progress {
                what: self.what(),
                done: self.writer.written(),
                total: total.or(self.pin.size),
                unit: Unit::Bytes,
            });
        }
    }

    fn what(&self) -> String {
        format!("fetch {}", self.name)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The seconds of a `Retry-After`. A date is not taken: the host's clock may be wrong.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    text_of(response, header::RETRY_AFTER)?.trim().parse().ok().map(Duration::from_secs)
}

fn answered(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("the server answered {} {reason}", status.as_u16()),
        None => format!("the server answered {}", status.as_u16()),
    }
}

/// A line of a page, in whatever language, without what would control a terminal.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn text_of(response: &Response<Body>, name: header::HeaderName) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
#[path = "fetch/tests.rs"]
mod tests;
