//! The tasks behind a port: one reads QEMU's socket, one writes it; one reads a station.

use super::LONGEST_FRAME;
use super::port::PortCore;
use super::queue::{Batch, Queue};
use super::table::{Domain, View};
use super::way::{self, Run};
use crate::wait::Death;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;

/// What one `read` may bring: more than the longest frame, or many short ones.
const READ: usize = 128 * 1024;

/// Frames taken from a station at once.
const BURST: usize = 256;

/// Takes the port out of its network and says why.
pub(super) fn unplug(domain: &Domain, port: &Arc<PortCore>, cause: &str) {
    domain.remove(port);
    port.close(format!("{} was unplugged from network `{}`: {cause}", port.name, domain.name));
}

pub(super) async fn read_socket(mut view: View, port: Arc<PortCore>, socket: OwnedReadHalf) {
    let cause = read_frames(&mut view, &port, socket).await;
    unplug(&view.domain, &port, &cause);
}

/// Reads until the socket ends; says why it did.
async fn read_frames(view: &mut View, port: &Arc<PortCore>, mut socket: OwnedReadHalf) -> String {
    // The beginning of a frame that is not whole yet, and room for what one read brings.
    let mut buffer = vec![0; READ + LONGEST_FRAME + 4];
    let mut filled = 0;
    loop {
        match socket.read(&mut buffer[filled..]).await {
            Ok(0) if filled == 0 => return "its peer closed the connection".into(),
            Ok(0) => return "its peer closed the connection in the middle of a frame".into(),
            Ok(read) => filled += read,
            Err(e) => return format!("cannot read from its socket: {e}"),
        }
        let mut rest = &buffer[..filled];
        loop {
            match Run::split(rest, LONGEST_FRAME) {
                Ok(Some((run, behind))) => {
                    way::enter_run(view, port, run).await;
                    rest = behind;
                }
                Ok(None) => break,
                Err(length) => {
                    return format!(
                        "it announced a frame of {length} bytes (1 to {LONGEST_FRAME} are \
                         allowed), so its stream can no longer be followed"
                    );
                }
            }
        }
        let done = filled - rest.len();
        buffer.copy_within(done..filled, 0);
        filled -= done;
    }
}

pub(super) async fn write_socket(domain: Arc<Domain>, port: Arc<PortCore>) {
    let Some(queue) = port.queue() else { return };
    if let Err(e) = write_batches(&port, queue).await {
        unplug(&domain, &port, &format!("cannot write to its socket: {e}"));
    }
}

async fn write_batches(port: &PortCore, queue: &Queue) -> io::Result<()> {
    let mut batch = Batch::default();
    while queue.take(&mut batch).await {
        if !port.is_up() {
            port.dropped(batch.forget());
        }
        queue.write(&batch).await?;
    }
    Ok(())
}

/// Forwards what a station sends until its port is dropped or its receiver is; what it had sent
/// before is still delivered.
pub(super) async fn read_station(
    mut view: View,
    port: Arc<PortCore>,
    mut from: mpsc::Receiver<Bytes>,
    to: mpsc::Sender<Bytes>,
    mut death: Death,
) {
    let mut frames = Vec::new();
    loop {
        let got = tokio::select! {
            biased;
            got = from.recv_many(&mut frames, BURST) => got,
            () = to.closed() => {
                unplug(&view.domain, &port, "its receiver is gone");
                0
            }
            _ = death.wait() => 0,
        };
        if got == 0 {
            from.close();
        }
        for frame in frames.drain(..) {
            port.received.add(1, frame.len() as u64);
            if frame.len() > LONGEST_FRAME {
                port.dropped(1);
            } else {
                way::enter(&mut view, &port, &frame).await;
            }
        }
        // Closed and drained, or all its senders are gone: nothing can come any more.
        if from.is_closed() && from.is_empty() {
            break;
        }
    }
    // It may still receive after its last sender went.
    tokio::select! {
        () = to.closed() => unplug(&view.domain, &port, "its receiver is gone"),
        _ = death.wait() => {}
    }
}
