//! Ways to a stage.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

/// The longest frame, in bytes: more rows than any pass has.
pub const MAX_FRAME: usize = 1 << 28;
/// How long the other end may take for a pass.
const PATIENCE: Duration = Duration::from_secs(120);

/// Carries frames of bytes between two processes, in order and whole, or fails.
pub trait Transport: Send {
    /// Sends a frame of at most [`MAX_FRAME`] bytes.
    ///
    /// # Errors
    /// If it cannot be sent; nothing may be sent afterwards.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Waits for the next frame.
    ///
    /// # Errors
    /// If there is none anymore ([`io::ErrorKind::UnexpectedEof`]), if it is too long
    /// ([`io::ErrorKind::InvalidData`]), or if it does not come.
    fn receive(&mut self) -> io::Result<Vec<u8>>;
}

/// Frames over a stream of bytes: each has its length before it, four bytes, the lowest first.
#[derive(Debug)]
pub struct Stream<S>(S);

impl<S: Read + Write + Send> Stream<S> {
    /// Frames over any stream.
    pub fn new(stream: S) -> Self {
        Self(stream)
    }
}

impl Stream<TcpStream> {
    /// Connects to a stage. It has two minutes for each pass.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(address: impl ToSocketAddrs) -> io::Result<Self> {
        let stream = Self::tcp(TcpStream::connect(address)?)?;
        stream.0.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// A connection that was accepted; it may be silent for as long as it likes.
    ///
    /// # Errors
    /// The system's.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        // A pass is one small frame there and one back.
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }
}

fn too_long(found: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a frame of {found} bytes, at most {MAX_FRAME} are allowed"),
    )
}

impl<S: Read + Write + Send> Transport for Stream<S> {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if frame.len() > MAX_FRAME {
            return Err(too_long(frame.len()));
        }
        let mut whole = Vec::with_capacity(4 + frame.len());
        whole.extend((frame.len() as u32).to_le_bytes());
        whole.extend_from_slice(frame);
        self.0.write_all(&whole)?;
        self.0.flush()
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(too_long(length));
        }
        // It grows as bytes come, whatever the length says.
        let mut frame = Vec::new();
        (&mut self.0).take(length as u64).read_to_end(&mut frame)?;
        match frame.len() == length {
            true => Ok(frame),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Two ends within one process.
pub fn channel() -> (impl Transport, impl Transport) {
    let ((to_b, from_a), (to_a, from_b)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    (Channel(to_b, from_b), Channel(to_a, from_a))
}

struct Channel(Sender<Vec<u8>>, Receiver<Vec<u8>>);

impl Transport for Channel {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        self.1.recv().map_err(|_| io::ErrorKind::UnexpectedEof.into())
    }
}
