//! Our own standard input and output as streams of pieces.

use bytes::Bytes;
use std::io::{Read, Write};
use tokio::sync::mpsc;

/// Pieces on their way.
const DEPTH: usize = 8;
const PIECE: usize = 32 * 1024;

/// Standard input to its end. Read by a thread of its own, which may wait for a key for ever: it
/// is no part of the runtime and holds up nobody's exit.
pub fn input() -> mpsc::Receiver<Bytes> {
    let (to, pieces) = mpsc::channel(DEPTH);
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        loop {
            match std::io::stdin().read(&mut piece) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(n @ 1..) if to.blocking_send(Bytes::copy_from_slice(&piece[..n])).is_ok() => {}
                _ => break,
            }
        }
    });
    pieces
}

/// Bytes as they are, at once.
pub fn output(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

pub fn error(bytes: &[u8]) -> std::io::Result<()> {
    std::io::stderr().lock().write_all(bytes)
}
