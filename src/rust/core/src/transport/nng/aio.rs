//! NNG's C interface: streams, listeners, dialers and asynchronous operations. All `unsafe` code of
//! `transport/nng` is here, behind types that are safe to use:
//!
//! - [`Operation`] is NNG's *aio*. It owns the memory that NNG reads or writes while it is under way.
//! - [`Stream`] is one connection's byte stream with its two operations.
//! - [`RawListener`], [`RawDialer`] and [`RawStream`] free what they hold when they are dropped.
//!
//! NNG's functions on these may be called from any thread. It calls back on threads of its own.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_int};
use std::io;
use std::iter;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use nng::{Aio, AioResult, AioState};
use nng_sys::{nng_aio, nng_iov, nng_stream, nng_stream_dialer, nng_stream_listener};
use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};

use super::super::address::NetworkUrl;
use super::error::io_error;
use crate::protocol::Flat;
use crate::sys::io_thread;
use crate::tls::engine::{self, Failure};
use crate::tls::{Identity, Trust};

/// Limit of the pieces of memory in one operation of NNG's.
const PIECES: usize = 8;
/// Frames of any size that are sent at once, at most: two pieces for each, and one for the [`Parcel`]'s prefix.
pub(super) const BATCH: usize = (PIECES - 1) / 2;
/// Pieces up to this number of bytes in all are put together first: TLS makes a record of each.
const TOGETHER: usize = 16 * 1024;
/// Bytes of small frames that are sent at once, at most. They are put together with a prefix of less than what is left.
pub(super) const SMALL_FRAMES: usize = TOGETHER - 1024;
/// Small frames leave at once. NNG's own default for a stream is Nagle's algorithm (only its sockets of
/// messages turn that off): a reply would wait for the acknowledgement of the one before, which the other end
/// delays by 40 ms.
const NO_DELAY: &CStr = c"tcp-nodelay";

/// Starts NNG, whose threads shall not take signals that are meant for the main one.
fn init() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // Whatever is done first with NNG starts its threads; this does nothing else.
        crate::sys::signals::with_all_blocked(|| drop(nng::Aio::new(|_, _| {})));
        engine::install();
        // Remains of connections are cleared away there.
        io_thread::handle();
    });
}

/// NNG's own text for a URL. Names that it would resolve otherwise than the user expects have
/// been replaced before.
fn c_url(url: &NetworkUrl) -> io::Result<CString> {
    CString::new(url.to_string()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn checked(code: c_int) -> io::Result<()> {
    match std::num::NonZeroU32::new(code as u32) {
        None => Ok(()),
        Some(code) => Err(io_error(code.into())),
    }
}

/// An asynchronous operation of NNG's, which is begun again and again, but is under way once at a time.
/// Meanwhile it owns the memory `M` that NNG reads or writes.
///
/// End it by [`stop`](Self::stop) rather than by dropping it. If it were dropped while its callback runs, the
/// callback would drop the last handle, and wait for its own end.
pub(super) struct Operation<M> {
    aio: Aio,
    /// Occupied while the operation is under way.
    memory: Arc<Mutex<Option<M>>>,
}

impl<M: Send + 'static> Operation<M> {
    /// `done` is called by NNG when the operation is over. It may begin it again.
    fn new(
        done: impl Fn(Operation<M>, M, Result<(), nng::Error>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let memory = Arc::new(Mutex::new(None));
        let kept = memory.clone();
        let aio = Aio::new(move |aio, result| {
            // The crate knows of no operations on streams; to it, these are sleeps.
            let AioResult::Sleep(result) = result else {
                return;
            };
            let taken = kept.lock().take();
            if let Some(taken) = taken {
                let memory = kept.clone();
                done(Operation { aio, memory }, taken, result);
            }
        });
        let aio = aio.map_err(io_error)?;
        Ok(Operation { aio, memory })
    }

    /// An operation that sends or receives. `done` gets the memory back, and the number of bytes transferred.
    fn transfer(
        done: impl Fn(M, Result<usize, nng::Error>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Operation::new(move |this, memory, result| {
            // SAFETY: the handle lives as long as `this`. The operation has just ended.
            let count = result.map(|()| unsafe { nng_sys::nng_aio_count(this.aio.nng_aio()) });
            done(memory, count);
        })
    }

    /// Begins the operation. `start` hands it to NNG.
    ///
    /// On Windows, the thread that calls this should live as long as the operation: NNG gives each an event, and the
    /// system cancels what has one when the thread that began it exits. The stream is over then.
    ///
    /// # Safety
    /// The pieces, at most eight, lie in `memory`, and stay where they are when `memory` is moved. `start` begins
    /// one operation of NNG's with the handle.
    unsafe fn begin(&self, memory: M, pieces: &[nng_iov], start: impl FnOnce(*mut nng_aio)) {
        {
            let mut under_way = self.memory.lock();
            assert!(under_way.is_none(), "an operation is begun once at a time");
            *under_way = Some(memory);
        }
        // SAFETY: none is under way, as was just checked. NNG copies the list of pieces; their memory stays in
        // `self.memory` until NNG's callback takes it out.
        unsafe {
            self.aio.set_state(AioState::Sleeping, Ordering::SeqCst);
            let raw = self.aio.nng_aio();
            nng_sys::nng_aio_set_iov(raw, pieces.len() as u32, pieces.as_ptr());
            start(raw);
        }
    }

    /// Ends the operation for good, and waits for its callback. Must not be called by a callback.
    pub(super) fn stop(self) {
        // SAFETY: the handle lives as long as `self`.
        unsafe { nng_sys::nng_aio_stop(self.aio.nng_aio()) };
    }
}

/// An operation that accepts or dials: it has no memory.
pub(super) type Connecting = Operation<()>;

impl Connecting {
    /// `done` gets the operation, to begin it again if it likes, and the stream.
    pub(super) fn connecting(
        done: impl Fn(Connecting, Result<Option<RawStream>, nng::Error>) + Send + Sync + 'static,
    ) -> io::Result<Connecting> {
        Operation::new(move |this, (), result| {
            let stream = result.map(|()| {
                // SAFETY: the handle lives as long as `this`. The operation has just ended, and its only output
                // is a stream that nobody else has.
                let output = unsafe { nng_sys::nng_aio_get_output(this.aio.nng_aio(), 0) };
                NonNull::new(output.cast()).map(RawStream)
            });
            done(this, stream);
        })
    }
}

/// NNG's handle of a stream.
pub(super) struct RawStream(NonNull<nng_stream>);

// SAFETY: NNG's functions on a stream may be called from any thread.
unsafe impl Send for RawStream {}
// SAFETY: as above.
unsafe impl Sync for RawStream {}

impl Drop for RawStream {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this; the operations on it are over (`Stream` stops them first).
        unsafe { nng_sys::nng_stream_free(self.0.as_ptr()) };
    }
}

/// What is sent at once, in this order. NNG reads its memory until it says that it has.
#[derive(Default)]
pub(super) struct Parcel {
    /// Bytes before the frames: a frame's head of WebSocket's, an answer to a request.
    pub(super) prefix: Vec<u8>,
    /// At most [`BATCH`], or at most [`SMALL_FRAMES`] bytes.
    pub(super) frames: VecDeque<Flat>,
    /// A copy of all pieces, if they are small.
    together: Vec<u8>,
}

impl Parcel {
    pub(super) fn is_empty(&self) -> bool {
        self.prefix.is_empty() && self.frames.is_empty()
    }

    /// Bytes of all frames.
    pub(super) fn frame_bytes(&self) -> usize {
        self.frames.iter().map(Flat::len).sum()
    }

    /// The pieces: all of the prefix, then `most` bytes of the frames after the first `skip`, or fewer.
    fn pieces(&mut self, mut skip: usize, mut most: usize) -> SmallVec<[nng_iov; 2 * BATCH + 1]> {
        let rest = self.frames.iter().flat_map(Flat::parts).map(|part| {
            let of_part = skip.min(part.len());
            skip -= of_part;
            let now = (part.len() - of_part).min(most);
            most -= now;
            &part[of_part..of_part + now]
        });
        let parts: SmallVec<[&[u8]; 2 * BATCH + 1]> = iter::once(&self.prefix[..])
            .chain(rest)
            .filter(|part| !part.is_empty())
            .collect();
        let size: usize = parts.iter().map(|part| part.len()).sum();
        if parts.len() > 1 && size <= TOGETHER {
            self.together.clear();
            for part in parts {
                self.together.extend_from_slice(part);
            }
            return smallvec![iov(&self.together)];
        }
        parts.into_iter().take(PIECES).map(iov).collect()
    }
}

/// A piece of memory that NNG only reads.
fn iov(bytes: &[u8]) -> nng_iov {
    nng_iov {
        iov_buf: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// The stream is closed, or about to be.
#[derive(Debug)]
pub(super) struct Closed;

/// A connection's stream, with one operation for each direction.
pub(super) struct Stream {
    /// `None` only while it is dropped.
    raw: Option<RawStream>,
    receiving: OnceLock<Operation<Vec<u8>>>,
    sending: OnceLock<Operation<Parcel>>,
    /// An operation begun on a closed stream would never end: none is begun once this is
    /// set, and it is set before the stream is closed.
    closed: Mutex<bool>,
}

impl Stream {
    pub(super) fn new(raw: RawStream) -> Stream {
        Stream {
            raw: Some(raw),
            receiving: OnceLock::new(),
            sending: OnceLock::new(),
            closed: Mutex::new(false),
        }
    }

    /// Sets what is called when receiving and sending are over, with the memory and the number of bytes
    /// transferred. To be called once, and first.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn on_done(
        &self,
        received: impl Fn(Vec<u8>, Result<usize, nng::Error>) + Send + Sync + 'static,
        sent: impl Fn(Parcel, Result<usize, nng::Error>) + Send + Sync + 'static,
    ) -> io::Result<()> {
        let _ = self.receiving.set(Operation::transfer(received)?);
        let _ = self.sending.set(Operation::transfer(sent)?);
        Ok(())
    }

    fn raw(&self) -> *mut nng_stream {
        let raw = self.raw.as_ref().expect("there until dropped");
        raw.0.as_ptr()
    }

    /// Receives up to all of `buffer`'s length.
    pub(super) fn receive(&self, mut buffer: Vec<u8>) -> Result<(), Closed> {
        let piece = nng_iov {
            iov_buf: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let operation = self.receiving.get().expect("set by on_done()");
        let closed = self.closed.lock();
        if *closed {
            return Err(Closed);
        }
        // SAFETY: a vector's bytes stay where they are. The stream is freed after the operation is stopped.
        unsafe {
            operation.begin(buffer, &[piece], |aio| {
                nng_sys::nng_stream_recv(self.raw(), aio);
            });
        }
        Ok(())
    }

    /// Sends the prefix of `parcel`, and at most `most` bytes of its frames after the first `skip`: at least one byte in
    /// all.
    pub(super) fn send(&self, mut parcel: Parcel, skip: usize, most: usize) -> Result<(), Closed> {
        let pieces = parcel.pieces(skip, most);
        let operation = self.sending.get().expect("set by on_done()");
        let closed = self.closed.lock();
        if *closed {
            return Err(Closed);
        }
        // SAFETY: the bytes of vectors, bodies and mappings stay where they are, and so do heads: they are in the queue's
        // memory. Nobody changes them until the operation is over, and NNG only reads them. The stream is freed
        // after the operation is stopped.
        unsafe {
            operation.begin(parcel, &pieces, |aio| {
                nng_sys::nng_stream_send(self.raw(), aio);
            });
        }
        Ok(())
    }

    /// Closes the stream: operations that are under way end with an error, and none is begun any more.
    pub(super) fn close(&self) {
        let mut closed = self.closed.lock();
        if std::mem::replace(&mut *closed, true) {
            return;
        }
        // SAFETY: the stream is freed with `self`.
        unsafe { nng_sys::nng_stream_close(self.raw()) };
    }

    /// Whether small frames leave at once, as the system says of the connection.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) fn is_prompt(&self) -> io::Result<bool> {
        let mut prompt = false;
        // SAFETY: the stream lives; the name is a C string; `prompt` is written to.
        checked(unsafe {
            nng_sys::nng_stream_get_bool(self.raw(), NO_DELAY.as_ptr(), &raw mut prompt)
        })?;
        Ok(prompt)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The last holder may be one of NNG's threads in a callback of ours, for whose end
        // it must not wait; but somebody must, before the stream is freed.
        self.close();
        let (receiving, sending) = (self.receiving.take(), self.sending.take());
        let raw = self.raw.take();
        io_thread::handle().spawn(async move {
            receiving.into_iter().for_each(Operation::stop);
            sending.into_iter().for_each(Operation::stop);
            drop(raw);
        });
    }
}

/// NNG's handle of a listener.
pub(super) struct RawListener(NonNull<nng_stream_listener>);

// SAFETY: NNG's functions on a listener may be called from any thread.
unsafe impl Send for RawListener {}
// SAFETY: as above.
unsafe impl Sync for RawListener {}

impl RawListener {
    /// Listens at a URL of TCP, or of TLS over it with this identity.
    ///
    /// # Errors
    /// The port is taken, or the host is none of this machine's.
    pub(super) fn bind(url: &NetworkUrl, identity: Option<&Identity>) -> io::Result<RawListener> {
        init();
        let text = c_url(url)?;
        let mut raw = null_mut();
        // SAFETY: `text` is a C string; `raw` is written to.
        checked(unsafe { nng_sys::nng_stream_listener_alloc(&mut raw, text.as_ptr()) })?;
        let listener = RawListener(NonNull::new(raw).ok_or(io::ErrorKind::OutOfMemory)?);
        if let Some(identity) = identity {
            // SAFETY: the listener lives.
            unsafe { engine::secure_listener(raw, identity) }.map_err(io_error)?;
        }
        // SAFETY: the listener lives; the name is a C string.
        checked(unsafe { nng_sys::nng_stream_listener_set_bool(raw, NO_DELAY.as_ptr(), true) })?;
        // SAFETY: the listener lives.
        checked(unsafe { nng_sys::nng_stream_listener_listen(raw) })?;
        Ok(listener)
    }

    /// The port that the system chose.
    ///
    /// # Errors
    /// NNG does not know it.
    pub(super) fn bound_port(&self) -> io::Result<u16> {
        let mut port: c_int = 0;
        let name = nng_sys::NNG_OPT_TCP_BOUND_PORT.as_ptr().cast();
        // SAFETY: the listener lives; the name is a C string; `port` is written to.
        checked(unsafe { nng_sys::nng_stream_listener_get_int(self.0.as_ptr(), name, &mut port) })?;
        Ok(port as u16)
    }

    /// Accepts the next connection.
    pub(super) fn accept(&self, operation: &Connecting) {
        // SAFETY: there are no pieces of memory. NNG ends the operation when the listener is closed.
        unsafe {
            operation.begin((), &[], |aio| {
                nng_sys::nng_stream_listener_accept(self.0.as_ptr(), aio);
            });
        }
    }

    /// Ends listening. An operation that is under way ends with an error.
    pub(super) fn close(&self) {
        // SAFETY: the listener lives; it is freed with the last holder, which may be a callback.
        unsafe { nng_sys::nng_stream_listener_close(self.0.as_ptr()) };
    }
}

impl Drop for RawListener {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { nng_sys::nng_stream_listener_free(self.0.as_ptr()) };
    }
}

/// NNG's handle of a dialer.
pub(super) struct RawDialer(NonNull<nng_stream_dialer>);

impl RawDialer {
    /// A dialer for a URL, which believes whom `trust` does. Returns where TLS says why it failed, too.
    ///
    /// # Errors
    /// NNG does not accept the URL.
    pub(super) fn new(
        url: &NetworkUrl,
        trust: Option<&Trust>,
    ) -> io::Result<(RawDialer, Option<Failure>)> {
        init();
        let text = c_url(url)?;
        let mut raw = null_mut();
        // SAFETY: `text` is a C string; `raw` is written to.
        checked(unsafe { nng_sys::nng_stream_dialer_alloc(&mut raw, text.as_ptr()) })?;
        let dialer = RawDialer(NonNull::new(raw).ok_or(io::ErrorKind::OutOfMemory)?);
        // SAFETY: the dialer lives; the name is a C string.
        checked(unsafe { nng_sys::nng_stream_dialer_set_bool(raw, NO_DELAY.as_ptr(), true) })?;
        let failure = match trust {
            // SAFETY: the dialer lives.
            Some(trust) => {
                Some(unsafe { engine::secure_dialer(raw, trust, &url.host) }.map_err(io_error)?)
            }
            None => None,
        };
        Ok((dialer, failure))
    }

    /// Begins to dial, which goes on until `done` is called or what is returned is dropped.
    pub(super) fn dial(self, operation: Connecting) -> Dialling {
        // SAFETY: there are no pieces of memory. `Dialling` stops the operation before it frees the dialer.
        unsafe {
            operation.begin((), &[], |aio| {
                nng_sys::nng_stream_dialer_dial(self.0.as_ptr(), aio);
            });
        }
        Dialling {
            operation: Some(operation),
            _dialer: self,
        }
    }
}

impl Drop for RawDialer {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this.
        unsafe { nng_sys::nng_stream_dialer_free(self.0.as_ptr()) };
    }
}

/// A dialer at work. Ends that, and waits for the end, when it is dropped: not to be done by a callback.
pub(super) struct Dialling {
    operation: Option<Connecting>,
    /// Freed after the operation is stopped.
    _dialer: RawDialer,
}

impl Drop for Dialling {
    fn drop(&mut self) {
        if let Some(operation) = self.operation.take() {
            operation.stop();
        }
    }
}
