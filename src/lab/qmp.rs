//! QMP: QEMU's control protocol, one JSON object a line.
//!
//! The commands' and events' types come from qapi; the transport is ours. One task reads and one
//! writes, and callers only hold a slip with their id: a call that is dropped half-way costs
//! nothing but its answer, and no event is lost while somebody subscribed.

use crate::error::{Error, Result};
use crate::wait::{Death, Patience};
use qapi_spec::Command;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};

/// QEMU answers ordinary commands within milliseconds; a loaded host makes it slower.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a machine's death may trail the end of its monitor.
const DEATH_AFTER_EOF: Duration = Duration::from_secs(5);

/// No message of QEMU's comes near this many bytes: more is not QMP.
const LONGEST: usize = 16 << 20;

/// A negotiated session. Cheap to clone; ends with the stream.
#[derive(Clone, Debug)]
pub struct Qmp(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    next_id: AtomicU64,
    to_writer: mpsc::UnboundedSender<Vec<u8>>,
    state: Mutex<State>,
    patience: Patience,
    death: Death,
    /// `9.2.0`, as the greeting said.
    version: (u32, u32, u32),
}

#[derive(Debug, Default)]
struct State {
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    subscribers: Vec<mpsc::UnboundedSender<Event>>,
    /// Why there will be no more answers.
    ended: Option<String>,
}

/// `return`, or the `error`'s description.
type Answer = std::result::Result<Value, String>;

/// An event as QEMU said it: a newer QEMU may know more kinds than qapi does.
#[derive(Clone, Debug)]
pub struct Event {
    /// `SHUTDOWN`, `RESET`, …
    pub name: String,
    pub data: Value,
    whole: Value,
}

impl Event {
    /// The event as qapi types it, where it knows it.
    pub fn typed(&self) -> Option<qapi_qmp::Event> {
        serde_json::from_value(self.whole.clone()).ok()
    }

    /// `None` where the message is no event.
    pub(super) fn of(message: &Value) -> Option<Event> {
        let name = message.get("event")?.as_str()?.to_owned();
        let data = message.get("data").cloned().unwrap_or(Value::Null);
        Some(Event { name, data, whole: message.clone() })
    }
}

impl Qmp {
    /// Reads the greeting and negotiates. `death` is that of the machine: it ends every call.
    pub async fn negotiate(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        patience: &Patience,
        death: &Death,
    ) -> Result<Qmp> {
        let (read, mut write) = tokio::io::split(stream);
        let mut lines = Lines(BufReader::new(read));
        let first = async { Ok(lines.next().await) };
        let greeting = match patience.within("QEMU's greeting", ANSWER, death, first).await? {
            Next::Message(message) => message,
            Next::End(why) => return Err(ended(&why, death.clone()).await),
        };
        let greeting: qapi_qmp::QapiCapabilities = serde_json::from_value(greeting.clone())
            .map_err(|_| {
                let greeting = shortened(&greeting.to_string());
                Error::lab(format!("this is no QMP greeting: {greeting}"))
            })?;
        let qemu = greeting.QMP.version.qemu;
        let number = |n: i64| u32::try_from(n).unwrap_or(0);
        let version = (number(qemu.major), number(qemu.minor), number(qemu.micro));

        let (to_writer, mut lines_out) = mpsc::unbounded_channel::<Vec<u8>>();
        let shared = Arc::new(Shared {
            next_id: AtomicU64::new(1),
            to_writer,
            state: Mutex::default(),
            patience: patience.clone(),
            death: death.clone(),
            version,
        });
        // The writer ends with the last handle, and its half of the stream with it; whole lines
        // only, however many callers give up.
        tokio::spawn(async move {
            while let Some(line) = lines_out.recv().await {
                if write.write_all(&line).await.is_err() {
                    // The reader sees the end too and tells the callers.
                    break;
                }
            }
            let _ = write.shutdown().await;
        });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            loop {
                let next = lines.next().await;
                let Some(shared) = weak.upgrade() else { break };
                match next {
                    Next::Message(message) => shared.deliver(message),
                    Next::End(why) => break shared.end(&why),
                }
            }
        });
        let qmp = Qmp(shared);
        qmp.call(&qapi_qmp::qmp_capabilities { enable: None }).await?;
        Ok(qmp)
    }

    /// Runs a command. Cancelling it does not unsay it: QEMU still carries it out.
    pub async fn call<C: Command>(&self, command: &C) -> Result<C::Ok> {
        self.call_within(command, ANSWER).await
    }

    /// The same for commands that take their time. `nominal` is scaled by the machine's speed.
    pub async fn call_within<C: Command>(&self, command: &C, nominal: Duration) -> Result<C::Ok> {
        let arguments = serde_json::to_value(command)
            .map_err(|e| Error::internal(format!("cannot write `{}`", C::NAME)).because(e))?;
        let value = self.call_raw(C::NAME, arguments, nominal).await?;
        serde_json::from_value(value.clone()).map_err(|e| {
            let value = shortened(&value.to_string());
            Error::lab(format!("QEMU answered `{}` with {value}", C::NAME)).because(e)
        })
    }

    /// A command by name, for what qapi does not know.
    pub async fn call_raw(&self, name: &str, arguments: Value, nominal: Duration) -> Result<Value> {
        let slip = self.0.register();
        let mut message = json!({ "execute": name, "id": slip.id });
        if arguments.as_object().is_some_and(|a| !a.is_empty()) {
            message["arguments"] = arguments;
        }
        let mut line = message.to_string().into_bytes();
        line.push(b'\n');
        // A writer that is gone is told by the reader.
        let _ = self.0.to_writer.send(line);
        let what = format!("QEMU's answer to `{name}`");
        let answer = async { Ok(self.0.answer(slip).await) };
        match self.0.patience.within(&what, nominal, &self.0.death, answer).await? {
            Some(answer) => {
                answer.map_err(|why| Error::lab(format!("QEMU refused `{name}`: {why}")))
            }
            // Outside of the deadline: the answer will not come, and the cause may take its time.
            None => Err(self.0.ended().await),
        }
    }

    /// Every event from now on. Ends with the session.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Event> {
        let (to, from) = mpsc::unbounded_channel();
        let mut state = self.0.state();
        if state.ended.is_none() {
            state.subscribers.push(to);
        }
        from
    }

    /// Whether answers can still come.
    pub fn is_open(&self) -> bool {
        self.0.state().ended.is_none()
    }

    /// QEMU's version: major, minor, micro.
    pub fn version(&self) -> (u32, u32, u32) {
        self.0.version
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the monitor's lock")
    }

    fn register(&self) -> Slip<'_> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (tx, answer) = oneshot::channel();
        let mut state = self.state();
        // After the end nobody would ever answer: dropping `tx` says so.
        if state.ended.is_none() {
            state.calls.insert(id, tx);
        }
        Slip { shared: self, id, answer }
    }

    /// None where the session has ended.
    async fn answer(&self, mut slip: Slip<'_>) -> Option<Answer> {
        (&mut slip.answer).await.ok()
    }

    /// Why no answer comes any more.
    async fn ended(&self) -> Error {
        let why = self.state().ended.clone().unwrap_or_else(|| "it was dropped".into());
        ended(&why, self.death.clone()).await
    }

    fn deliver(&self, message: Value) {
        let mut state = self.state();
        if let Some(event) = Event::of(&message) {
            state.subscribers.retain(|s| s.send(event.clone()).is_ok());
            return;
        }
        let call = message.get("id").and_then(Value::as_u64).and_then(|id| state.calls.remove(&id));
        // An answer to a call that was dropped, or an error without an id, is nobody's.
        let Some(call) = call else { return };
        let answer = match message.get("return") {
            Some(value) => Ok(value.clone()),
            None => {
                let error = message.get("error").unwrap_or(&message);
                let text = error.get("desc").and_then(Value::as_str).map(str::to_owned);
                Err(text.unwrap_or_else(|| shortened(&message.to_string())))
            }
        };
        let _ = call.send(answer);
    }

    fn end(&self, why: &str) {
        let mut state = self.state();
        state.ended = Some(why.to_owned());
        state.calls.clear();
        state.subscribers.clear();
    }
}

/// The monitor's end is mostly the machine's death, whose cause is the better story.
async fn ended(why: &str, mut death: Death) -> Error {
    match tokio::time::timeout(DEATH_AFTER_EOF, death.wait()).await {
        Ok(cause) => Error::lab(format!("the monitor ended because {cause}")),
        Err(_) => Error::lab(format!("the monitor ended: {why}")),
    }
}

/// A caller's place in the list of those who wait; given back however the call ends.
struct Slip<'s> {
    shared: &'s Shared,
    id: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Drop for Slip<'_> {
    fn drop(&mut self) {
        self.shared.state().calls.remove(&self.id);
    }
}

struct Lines<R>(BufReader<R>);

enum Next {
    Message(Value),
    End(String),
}

impl<R: AsyncRead + Unpin> Lines<R> {
    async fn next(&mut self) -> Next {
        loop {
            let line = match self.line().await {
                Ok(Some(line)) => line,
                Ok(None) => return Next::End("QEMU closed it".into()),
                Err(e) => return Next::End(format!("it cannot be read: {e}")),
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            return match serde_json::from_slice::<Value>(&line) {
                Ok(message) if message.is_object() => Next::Message(message),
                _ => {
                    let text = String::from_utf8_lossy(&line);
                    Next::End(format!("this is not QMP: {}", shortened(text.trim())))
                }
            };
        }
    }

    /// One line with its end, or without it at the end of the stream.
    async fn line(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        loop {
            let ready = self.0.fill_buf().await?;
            if ready.is_empty() {
                return Ok((!line.is_empty()).then_some(line));
            }
            let end = ready.iter().position(|&b| b == b'\n');
            let take = end.map_or(ready.len(), |e| e + 1);
            line.extend_from_slice(&ready[..take]);
            self.0.consume(take);
            if end.is_some() {
                return Ok(Some(line));
            }
            if line.len() > LONGEST {
                return Err(std::io::Error::other("a line without an end"));
            }
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
