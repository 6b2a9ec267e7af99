//! Numbered frames from one endpoint to another, as fast as they go.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

const BROADCAST: [u8; 6] = [0xff; 6];
const TO: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
const FROM: [u8; 6] = [2, 0, 0, 0, 0, 0xa];

/// An Ethernet header.
pub const HEADER: usize = 14;

/// A receiver that heard nothing for so long, after all was sent, has heard all.
const SILENCE: Duration = Duration::from_millis(500);

/// What QEMU's stream netdev reads at once.
const READ: usize = 68 * 1024;

/// One end of a wire.
pub trait End: Send {
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;
    /// Waits for frames, at most [`SILENCE`].
    fn receive(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()>;
}

#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub sent: u64,
    pub received: u64,
    /// From the first frame's departure to the last one's arrival.
    pub seconds: f64,
}

/// Sends `count` frames with `payload` bytes each from `tx` to `rx`, each a write of its own as
/// QEMU does it. An error when a frame comes changed or in the wrong order.
pub fn run(payload: usize, count: u64, mut tx: impl End, mut rx: impl End) -> io::Result<Outcome> {
    // So that the way to the receiver is known.
    rx.send(&[&BROADCAST[..], &TO, &[0x88, 0xb5], &[0; 50]].concat())?;
    std::thread::scope(move |scope| {
        let start = Instant::now();
        let sender = scope.spawn(move || {
            let mut frame = [&TO[..], &FROM, &[0x88, 0xb5], &vec![0xa5; payload]].concat();
            for n in 0..count {
                frame[HEADER..HEADER + 8].copy_from_slice(&n.to_be_bytes());
                tx.send(&frame)?;
            }
            // Kept until the end: a closed endpoint may lose what it sent.
            Ok::<_, io::Error>(tx)
        });
        let (mut received, mut next, mut wrong) = (0, 0, None);
        let mut last = start;
        while received < count && wrong.is_none() {
            let heard = rx.receive(&mut |frame| {
                if frame.get(6..12) != Some(&FROM) {
                    return;
                }
                let number = frame.get(HEADER..HEADER + 8).and_then(|n| n.first_chunk());
                let number = number.map_or(0, |n| u64::from_be_bytes(*n));
                if frame.len() != HEADER + payload {
                    wrong = Some(format!("a frame was cut to {} bytes", frame.len()));
                } else if number < next {
                    wrong = Some(format!("frame {number} came after its successor"));
                }
                (received, next) = (received + 1, number + 1);
            });
            match heard {
                Ok(()) => last = Instant::now(),
                Err(e) if is_silence(&e) && sender.is_finished() => break,
                Err(e) if is_silence(&e) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(wrong) = wrong {
            return Err(io::Error::other(wrong));
        }
        sender.join().map_err(|_| io::Error::other("the sender panicked"))??;
        Ok(Outcome { sent: count, received, seconds: (last - start).as_secs_f64() })
    })
}

fn is_silence(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// QEMU's stream protocol.
pub struct Stream {
    socket: UnixStream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Stream {
    /// `socket` must be a blocking one.
    pub fn new(socket: UnixStream) -> io::Result<Stream> {
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(Stream { socket, buffer: vec![0; READ], filled: 0 })
    }
}

impl End for Stream {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let length = (frame.len() as u32).to_be_bytes();
        let written = self.socket.write_vectored(&[IoSlice::new(&length), IoSlice::new(frame)])?;
        let in_length = written.min(length.len());
        self.socket.write_all(&length[in_length..])?;
        self.socket.write_all(&frame[written - in_length..])
    }

    fn receive(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let read = self.socket.read(&mut self.buffer[self.filled..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled += read;
        let mut at = 0;
        while let Some(head) = self.buffer[at..self.filled].first_chunk::<4>() {
            let end = at + 4 + u32::from_be_bytes(*head) as usize;
            if end > self.filled {
                break;
            }
            each(&self.buffer[at + 4..end]);
            at = end;
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }
}

/// One frame a datagram.
pub struct Datagrams {
    socket: UnixDatagram,
    buffer: Vec<u8>,
    /// Ends the connection when dropped.
    _control: UnixStream,
}

impl Datagrams {
    pub fn new(socket: UnixDatagram, control: UnixStream) -> io::Result<Datagrams> {
        socket.set_read_timeout(Some(SILENCE))?;
        Ok(Datagrams { socket, buffer: vec![0; READ], _control: control })
    }
}

impl End for Datagrams {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }

    fn receive(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let length = self.socket.recv(&mut self.buffer)?;
        each(&self.buffer[..length]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Stream, Stream) {
        let (a, b) = UnixStream::pair().unwrap();
        (Stream::new(a).unwrap(), Stream::new(b).unwrap())
    }

    #[test]
    fn every_frame_is_counted_and_a_lost_one_is_missing() {
        let (tx, rx) = ends();
        let all = run(1500, 1000, tx, rx).unwrap();
        assert_eq!((all.sent, all.received), (1000, 1000));
        assert!(all.seconds > 0.0);

        /// Loses every tenth frame.
        struct Lossy(Stream, u32);
        impl End for Lossy {
            fn send(&mut self, frame: &[u8]) -> io::Result<()> {
                self.1 += 1;
                if self.1.is_multiple_of(10) { Ok(()) } else { self.0.send(frame) }
            }
            fn receive(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
                self.0.receive(each)
            }
        }
        let (tx, rx) = ends();
        assert_eq!(run(9000, 1000, Lossy(tx, 0), rx).unwrap().received, 900);
    }

    #[test]
    fn a_frame_that_was_cut_is_an_error() {
        struct Short(Stream);
        impl End for Short {
            fn send(&mut self, frame: &[u8]) -> io::Result<()> {
                self.0.send(&frame[..frame.len().min(1518)])
            }
            fn receive(&mut self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
                self.0.receive(each)
            }
        }
        let (tx, rx) = ends();
        let error = run(9000, 10, Short(tx), rx).unwrap_err();
        assert!(error.to_string().contains("cut to 1518 bytes"), "{error}");
    }
}
