//! Ports of the host's loopback that lead into the lab.

use super::handles::Reach;
use super::status::ForwardStatus;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// The way into the lab as it is at the moment: a restore replaces it.
pub type Way = Arc<dyn Fn() -> Result<Reach> + Send + Sync>;

/// All forwards of one owner.
#[derive(Debug, Default)]
pub struct Forwards(Mutex<(u64, BTreeMap<u64, Entry>)>);

#[derive(Debug)]
struct Entry {
    listen: SocketAddr,
    to: String,
    keep: bool,
    connections: Arc<AtomicU64>,
    task: AbortHandle,
}

/// Ends its forward, with all connections, when dropped.
#[derive(Debug)]
pub struct Held {
    all: Arc<Forwards>,
    number: u64,
    pub listen: SocketAddr,
}

impl Forwards {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Entry>)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Listens and serves until the result is dropped. Only loopback is listened on.
    pub async fn open(
        self: &Arc<Self>,
        way: Way,
        host: &str,
        port: u16,
        listen: SocketAddr,
        keep: bool,
    ) -> Result<Held> {
        if !listen.ip().is_loopback() {
            return Err(Error::input(format!("{} is not an address of the loopback", listen.ip()))
                .hint("listen on 127.0.0.1: whoever reaches the port reaches the lab"));
        }
        // A node that is not there is told now, not at the first connection.
        way()?.target(host, port)?;
        let listener = TcpListener::bind(listen).await.map_err(|e| self.not_free(listen, e))?;
        let listen = listener.local_addr().unwrap_or(listen);
        let connections = Arc::new(AtomicU64::new(0));
        let (host_text, count) = (host.to_owned(), connections.clone());
        let task = tokio::spawn(serve(listener, way, host_text, port, count)).abort_handle();
        let entry = Entry { listen, to: format!("{host}:{port}"), keep, connections, task };
        let mut all = self.lock();
        all.0 += 1;
        let number = all.0;
        all.1.insert(number, entry);
        Ok(Held { all: Arc::clone(self), number, listen })
    }

    fn not_free(&self, listen: SocketAddr, e: std::io::Error) -> Error {
        if e.kind() != std::io::ErrorKind::AddrInUse {
            return Error::host(format!("cannot listen on {listen}")).because(e);
        }
        let all = self.lock();
        let ours = all.1.values().find(|entry| entry.listen == listen);
        let by =
            ours.map_or("another process".into(), |e| format!("this lab's forward to {}", e.to));
        Error::host(format!("{listen} is taken by {by}")).hint(format!(
            "choose another port, or any free one with --listen {}",
            SocketAddr::new(listen.ip(), 0)
        ))
    }

    pub fn status(&self) -> Vec<ForwardStatus> {
        let all = self.lock();
        let one = |e: &Entry| ForwardStatus {
            listen: e.listen,
            to: e.to.clone(),
            keep: e.keep,
            connections: e.connections.load(Ordering::Relaxed),
        };
        all.1.values().map(one).collect()
    }
}

impl Held {
    /// It stays until the owner ends.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(entry) = self.all.lock().1.remove(&self.number) {
            entry.task.abort();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, way: Way, host: String, port: u16, count: Arc<AtomicU64>) {
    // Dropped with this task: its connections end with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors, say: the next connection may fare better.
                let Ok((mut near, _)) = accepted else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                let (way, host) = (way.clone(), host.clone());
                connections.spawn(async move {
                    let Ok(reach) = way() else { return };
                    // The peer sees its connection closed; why, `lab status` tells better.
                    let Ok(mut far) = reach.dial(&host, port).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
