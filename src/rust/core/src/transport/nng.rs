//! Byte streams across the network, by NNG: TCP, WebSocket, and both within TLS.
//!
//! A host listens at each of its URLs and a daemon dials one; what either gets is a
//! [`Connection`], which carries the same frames as a Unix socket does, only that control
//! messages go along with the rest, ahead of what has not begun to be sent.
//!
//! These are NNG's *streams*, and not its Pair sockets: a polyamorous one, which could
//! hold many daemons, drops what is sent to a pipe whose queue of two is full, and says
//! nothing; has a message received whole, however long, before anybody can look at who sends it;
//! costs two more changes of thread each way; is discouraged by NNG itself; and the `nng` crate
//! (1.0) cannot open one. A stream tells how much it has taken, so nothing is lost and nothing
//! has to be counted, and it is read in pieces, so a stranger can make us hold no more
//! than a small handshake.
//!
//! NNG calls back on its own threads. What they do here is short: they take frames apart and hand
//! them on, and send what is next. None of it blocks.

use std::collections::VecDeque;
use std::ffi::{CString, c_int};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use nng::{Aio, AioResult, AioState};
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::de::DeserializeOwned;
use smallvec::SmallVec;

use super::address::NetworkUrl;
use super::websocket::{PAYLOAD, Route, Routes, listen as listen_websocket};
use super::{Channel, Link};
use crate::protocol::websocket::{self, Answer, Decoder, Heard, Request};
use crate::protocol::{Control, Frame, FrameReader, ToDaemon};
use crate::sys::io_thread;
use crate::sys::{Bell, Waited};
use crate::tls::engine::{self, Failure};
use crate::tls::{Identity, Trust};

/// Bytes that are read at once: at first, which is enough for any stranger, and at most.
const READ: (usize, usize) = (8 * 1024, 256 * 1024);
/// Frames that are sent at once, at most: NNG takes eight pieces of memory, and a frame
/// has two; WebSocket adds one.
const BATCH: usize = 3;
/// Pieces up to so many bytes in all are put together first: TLS makes a record of each.
const TOGETHER: usize = 16 * 1024;
/// Small frames leave at once. NNG's own default for a stream is Nagle's algorithm (only its sockets of
/// messages turn that off): a reply would wait for the acknowledgement of the one before, which the other end
/// delays by 40 ms.
const NO_DELAY: &std::ffi::CStr = c"tcp-nodelay";
/// Time for a connection to come about.
const CONNECT: Duration = Duration::from_secs(20);

/// Whoever a connection is for. Called from NNG's threads, for one connection at a
/// time in the order of things; must not block.
pub trait Receiver: Send + Sync {
    /// Bytes have come. An error ends the connection.
    fn received(&self, bytes: &[u8]) -> io::Result<()>;
    /// The connection is over. Called once, and last.
    fn ended(&self);
}

/// How long a process that was suspended reads before it sends.
const SETTLE: Duration = Duration::from_millis(200);

/// A connection across the network, at either end.
pub struct Connection {
    /// `None` only while it is dropped.
    stream: Option<Stream>,
    receiver: OnceLock<Weak<dyn Receiver>>,
    input: Mutex<Input>,
    /// Receiving has begun.
    started: AtomicBool,
    output: Mutex<Output>,
    /// Something has been sent, or never will be.
    sent: Condvar,
    receiving: OnceLock<Aio>,
    sending: OnceLock<Aio>,
    /// When the peer was last heard, and sending to it last begun: see [`now`].
    heard: AtomicU64,
    said: AtomicU64,
    /// When keep-alive last looked, and how long after that it has looked again, unless this process was suspended
    /// (SIGSTOP, Ctrl-Z). 0 without keep-alive.
    looked: AtomicU64,
    look_within: AtomicU64,
    /// This process was suspended, and nothing is sent until something has been read.
    held: AtomicBool,
    /// Operations begun on a closed stream would never end: none is begun once this is
    /// set, and it is set before the stream is closed.
    closed: Mutex<bool>,
    ended: AtomicBool,
    /// What TLS had to say about the end, at the end that dialled.
    failure: Option<Failure>,
}

struct Input {
    /// Filled in by NNG while `receiving` is under way, otherwise ours.
    buffer: Box<[u8]>,
    envelope: Envelope,
}

/// What is around the bytes that come.
enum Envelope {
    /// Nothing; or NNG takes it off.
    None,
    /// WebSocket's, once what has come so far is a whole request.
    Request(Vec<u8>, Arc<Routes>),
    WebSocket(Decoder),
    /// The request was refused. Nothing is read any more.
    Refused,
}

#[derive(Default)]
struct Output {
    /// Whether what is sent is to be put into frames of WebSocket's.
    websocket: bool,
    /// Bytes to be sent before what is in `current`: a frame's head, an answer to a request.
    /// Not in here itself, which moves when the connection is dropped.
    prefix: Vec<u8>,
    /// Bytes of the frame that `prefix` begins which are not yet sent.
    left: usize,
    /// To be sent before the next frame.
    pong: Option<SmallVec<[u8; 16]>>,
    control: VecDeque<Frame>,
    data: VecDeque<Frame>,
    /// Being sent: NNG reads the memory of these until it says that it has.
    current: VecDeque<Frame>,
    /// Bytes of the first of them that are sent.
    done: usize,
    /// All of them put together, if they are small.
    together: Vec<u8>,
    /// NNG is sending, or somebody is making something ready for it.
    sending: bool,
    /// Nothing can be sent any more.
    over: bool,
}

impl Output {
    fn is_empty(&self) -> bool {
        !self.sending
            && self.prefix.is_empty()
            && self.control.is_empty()
            && self.data.is_empty()
            && self.current.is_empty()
    }
}

/// NNG's handle of a stream, which is closed and freed with it.
struct Stream(NonNull<nng_sys::nng_stream>);

// SAFETY: NNG's functions on a stream may be called from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this; the operations on it are over (`Connection`
        // drops their handles first, which waits for them).
        unsafe { nng_sys::nng_stream_free(self.0.as_ptr()) };
    }
}

/// Milliseconds since this was first asked, which fit an atomic.
pub fn now() -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_millis() as u64
}

impl Connection {
    /// Takes over a stream; call [`start`](Self::start) next.
    fn new(stream: Stream, failure: Option<Failure>) -> io::Result<Arc<Connection>> {
        let connection = Arc::new(Connection {
            stream: Some(stream),
            receiver: OnceLock::new(),
            input: Mutex::new(Input {
                buffer: vec![0; READ.0].into_boxed_slice(),
                envelope: Envelope::None,
            }),
            started: AtomicBool::new(false),
            output: Mutex::default(),
            sent: Condvar::new(),
            receiving: OnceLock::new(),
            sending: OnceLock::new(),
            heard: AtomicU64::new(now()),
            said: AtomicU64::new(now()),
            looked: AtomicU64::new(now()),
            look_within: AtomicU64::new(0),
            held: AtomicBool::new(false),
            closed: Mutex::new(false),
            ended: AtomicBool::new(false),
            failure,
        });
        let on = |done: fn(&Arc<Connection>, Result<usize, nng::Error>)| {
            let weak = Arc::downgrade(&connection);
            operation(move |_, result| {
                if let Some(connection) = weak.upgrade() {
                    done(&connection, result);
                }
            })
        };
        let _ = connection.receiving.set(on(Self::received)?);
        let _ = connection.sending.set(on(Self::has_sent)?);
        Ok(connection)
    }

    /// Begins to receive.
    pub fn start(self: &Arc<Self>, receiver: Weak<dyn Receiver>) {
        let _ = self.receiver.set(receiver);
        if !self.started.swap(true, Ordering::SeqCst) {
            self.receive();
        }
    }

    /// Begins to receive what shall be a request to speak WebSocket, for one of these paths.
    pub(super) fn start_with_request(self: &Arc<Self>, routes: Arc<Routes>) {
        self.input.lock().envelope = Envelope::Request(Vec::new(), routes);
        self.started.store(true, Ordering::SeqCst);
        self.receive();
    }

    fn raw(&self) -> *mut nng_sys::nng_stream {
        self.stream
            .as_ref()
            .expect("there until dropped")
            .0
            .as_ptr()
    }

    fn receive(self: &Arc<Self>) {
        let iov = {
            let buffer = &mut self.input.lock().buffer;
            nng_sys::nng_iov {
                iov_buf: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            }
        };
        let aio = self.receiving.get().expect("set by new()");
        let closed = self.closed.lock();
        if *closed {
            drop(closed);
            return self.end();
        }
        // SAFETY: the buffer lives as long as `self`, whose end waits for the operation's,
        // and is not looked at before that. There is one such operation at a time.
        unsafe {
            let raw = begin(aio, &[iov]);
            nng_sys::nng_stream_recv(self.raw(), raw);
        }
    }

    fn received(self: &Arc<Self>, result: Result<usize, nng::Error>) {
        let more = result.is_ok_and(|n| {
            self.heard.store(now(), Ordering::Relaxed);
            self.take(n).is_ok()
        });
        if more {
            self.receive();
        } else {
            self.close();
            self.end();
        }
    }

    /// Deals with the first `n` bytes of the input.
    fn take(self: &Arc<Self>, n: usize) -> io::Result<()> {
        let mut input = self.input.lock();
        let Input { buffer, envelope } = &mut *input;
        let taken = self.open(&mut buffer[..n], envelope);
        if n == buffer.len() && n < READ.1 {
            *buffer = vec![0; READ.1].into_boxed_slice();
        }
        taken
    }

    /// Hands bytes to the receiver, without the envelope.
    fn open(self: &Arc<Self>, bytes: &mut [u8], envelope: &mut Envelope) -> io::Result<()> {
        let deliver = |bytes: &[u8]| match self.receiver.get().and_then(Weak::upgrade) {
            Some(receiver) => receiver.received(bytes),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        };
        match envelope {
            Envelope::None => deliver(bytes),
            Envelope::Refused => Ok(()),
            Envelope::WebSocket(decoder) => {
                let mut at = 0;
                while at < bytes.len() {
                    let (done, heard) = decoder.decode(&mut bytes[at..], deliver)?;
                    at += done;
                    match heard {
                        Some(Heard::Ping(payload)) => self.pong(&payload),
                        Some(Heard::Close) => return Err(io::ErrorKind::ConnectionAborted.into()),
                        None => {}
                    }
                }
                Ok(())
            }
            Envelope::Request(so_far, routes) => {
                so_far.extend_from_slice(bytes);
                let Request::Whole { length, answer } = websocket::request(so_far)? else {
                    return Ok(());
                };
                let mut rest = so_far.split_off(length);
                let routes = routes.clone();
                let granted = match answer {
                    Answer::Upgrade { path, key } => match routes.at(&path) {
                        Some(accepted) => Ok((accepted, websocket::switching(&key))),
                        None => Err(websocket::NOT_FOUND),
                    },
                    Answer::Refused(text) => Err(text),
                };
                match granted {
                    // It stays on the list of those who have to go soon.
                    Err(text) => {
                        *envelope = Envelope::Refused;
                        self.say_first(text);
                        Ok(())
                    }
                    Ok((accepted, text)) => {
                        *envelope = Envelope::WebSocket(Decoder::default());
                        self.say_first(&text);
                        routes.forget(self);
                        accepted(self.clone());
                        self.open(&mut rest, envelope)
                    }
                }
            }
        }
    }

    /// Answers a request. From then on, WebSocket is spoken.
    fn say_first(&self, text: &str) {
        let mut output = self.output.lock();
        output.prefix.extend_from_slice(text.as_bytes());
        output.websocket = true;
        self.send_next(&mut output);
    }

    /// Has a ping answered soon. Of several, the last counts.
    fn pong(&self, payload: &[u8]) {
        let mut output = self.output.lock();
        output.pong = Some(websocket::pong(payload));
        if !output.sending {
            self.send_next(&mut output);
        }
    }

    fn end(self: &Arc<Self>) {
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Envelope::Request(_, routes) = &self.input.lock().envelope {
            routes.forget(self);
        }
        if let Some(receiver) = self.receiver.get().and_then(Weak::upgrade) {
            receiver.ended();
        }
    }

    /// Puts a frame in line.
    pub fn post(&self, channel: Channel, frame: Frame) {
        let mut output = self.output.lock();
        if output.over {
            return;
        }
        match channel {
            Channel::Data => output.data.push_back(frame),
            Channel::Control => output.control.push_back(frame),
        }
    }

    /// Has what is in line sent.
    pub fn flush(&self) {
        let mut output = self.output.lock();
        if !output.sending {
            self.send_next(&mut output);
        }
    }

    /// Whether this process was suspended, and has not had [`SETTLE`] since to read from the peer. That may have given up
    /// this connection and said so: were anything sent to it, the system would answer with a reset, upon which
    /// NNG discards what it has not read.
    fn is_held(&self) -> bool {
        let within = self.look_within.load(Ordering::Relaxed);
        let looked = self.looked.load(Ordering::Relaxed);
        if within > 0 && now().saturating_sub(looked) > within {
            self.held.store(true, Ordering::SeqCst);
        }
        self.held.load(Ordering::SeqCst)
    }

    /// There was time to read what had come.
    fn release(&self) {
        if self.look_within.load(Ordering::Relaxed) == 0 {
            return;
        }
        if self.is_held() {
            self.looked.store(now(), Ordering::Relaxed);
            self.held.store(false, Ordering::SeqCst);
            self.flush();
        }
    }

    fn send_next(&self, output: &mut MutexGuard<'_, Output>) {
        if self.is_held() {
            output.sending = false;
            return;
        }
        if output.current.is_empty() {
            take_next(output);
        }
        self.send_current(output);
    }

    fn send_current(&self, output: &mut Output) {
        if output.over {
            return;
        }
        if output.websocket && output.prefix.is_empty() && output.left == 0 {
            let waiting = output.current.iter().map(|f| f.head.len() + f.body.len());
            let size = (waiting.sum::<usize>() - output.done).min(PAYLOAD);
            if let Some(pong) = output.pong.take() {
                output.prefix.extend_from_slice(&pong);
            }
            if size > 0 {
                output.prefix.extend_from_slice(&websocket::head(size));
                output.left = size;
            }
        }
        let mut pieces = [nng_sys::nng_iov::default(); 2 * BATCH + 1];
        let mut used = 0;
        let mut room = if output.websocket {
            output.left
        } else {
            usize::MAX
        };
        let mut piece = |part: &[u8]| {
            if !part.is_empty() {
                pieces[used] = nng_sys::nng_iov {
                    iov_buf: part.as_ptr().cast_mut().cast(),
                    iov_len: part.len(),
                };
                used += 1;
            }
        };
        piece(&output.prefix);
        let mut skip = output.done;
        for part in output
            .current
            .iter()
            .flat_map(|f| [&f.head[..], &f.body[..]])
        {
            let of_part = skip.min(part.len());
            skip -= of_part;
            let now = (part.len() - of_part).min(room);
            room -= now;
            piece(&part[of_part..of_part + now]);
        }
        output.sending = used > 0;
        if used == 0 {
            return;
        }
        let size: usize = pieces[..used].iter().map(|piece| piece.iov_len).sum();
        if used > 1 && size <= TOGETHER {
            output.together.clear();
            for piece in &pieces[..used] {
                // SAFETY: parts of the frames in `current` and of `prefix`, see above.
                let bytes =
                    unsafe { std::slice::from_raw_parts(piece.iov_buf.cast(), piece.iov_len) };
                output.together.extend_from_slice(bytes);
            }
            pieces[0] = nng_sys::nng_iov {
                iov_buf: output.together.as_mut_ptr().cast(),
                iov_len: size,
            };
            used = 1;
        }
        self.said.store(now(), Ordering::Relaxed);
        let aio = self.sending.get().expect("set by new()");
        let closed = self.closed.lock();
        if *closed {
            *output = Output {
                over: true,
                ..Output::default()
            };
            self.sent.notify_all();
            return;
        }
        // SAFETY: `prefix` is not touched, and the frames stay in `current`, and so their memory
        // where it is (bodies are not moved with their handles; heads are not while the queue
        // is not touched, which it is not) until the operation is over: `has_sent`. NNG only
        // reads it.
        unsafe {
            let raw = begin(aio, &pieces[..used]);
            nng_sys::nng_stream_send(self.raw(), raw);
        }
    }

    fn has_sent(self: &Arc<Self>, result: Result<usize, nng::Error>) {
        let mut output = self.output.lock();
        match result {
            Ok(n) => {
                let of_prefix = n.min(output.prefix.len());
                output.prefix.drain(..of_prefix);
                let n = n - of_prefix;
                output.left = output.left.saturating_sub(n);
                output.done += n;
                while let Some(first) = output.current.front() {
                    let whole = first.head.len() + first.body.len();
                    if output.done < whole {
                        break;
                    }
                    output.done -= whole;
                    output.current.pop_front();
                }
                self.send_next(&mut output);
            }
            Err(_) => {
                *output = Output {
                    over: true,
                    ..Output::default()
                };
                drop(output);
                self.close();
            }
        }
        self.sent.notify_all();
    }

    /// Sends a frame whose body is the caller's, and waits until it is sent.
    ///
    /// # Errors
    /// The connection is over.
    pub fn send_all(&self, frame: Frame) -> io::Result<()> {
        self.post(Channel::Data, frame);
        self.flush();
        self.wait_sent(None)
    }

    /// Waits until nothing is left in line.
    ///
    /// # Errors
    /// The connection is over, or `until` has passed.
    pub fn wait_sent(&self, until: Option<Instant>) -> io::Result<()> {
        let mut output = self.output.lock();
        while !output.is_empty() {
            match until {
                None => self.sent.wait(&mut output),
                Some(until) => {
                    if self.sent.wait_until(&mut output, until).timed_out() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
            }
        }
        if output.over {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }

    /// Ends the connection. Its receiver hears of it.
    pub fn close(&self) {
        let mut closed = self.closed.lock();
        if std::mem::replace(&mut *closed, true) {
            return;
        }
        // SAFETY: the stream is freed with `self`.
        unsafe { nng_sys::nng_stream_close(self.raw()) };
    }

    /// From now on, [`keep_alive`](Self::keep_alive) is called every quarter of `patience`.
    pub fn begin_keep_alive(&self, patience: Duration) {
        self.looked.store(now(), Ordering::Relaxed);
        let within = patience.as_millis() as u64 / 2;
        self.look_within.store(within, Ordering::Relaxed);
    }

    /// What keep-alive does every so often. Either end says something often enough for the
    /// other to know that it is there: unasked, as a question might be stuck behind a
    /// large task for longer than the other's patience lasts. False if the peer has not been heard
    /// for so long: it should be given up.
    ///
    /// To be called every quarter of the patience. If that is late, this process was suspended: what has come meanwhile
    /// is read first, for [`SETTLE`], and the peer's silence counts from now on.
    pub fn keep_alive(self: &Arc<Self>, patience: Duration, sign: impl FnOnce() -> Frame) -> bool {
        let (now, limit) = (now(), patience.as_millis() as u64);
        let age = |of: &AtomicU64| now.saturating_sub(of.load(Ordering::Relaxed));
        let late = age(&self.looked) > limit / 2;
        if late {
            self.held.store(true, Ordering::SeqCst);
            self.heard.store(now, Ordering::Relaxed);
        }
        self.looked.store(now, Ordering::Relaxed);
        if late {
            // A single read is no sign that all has been read: it may have been done before the suspension.
            let this = Arc::downgrade(self);
            io_thread::handle().spawn(async move {
                tokio::time::sleep(SETTLE).await;
                if let Some(this) = this.upgrade() {
                    this.release();
                }
            });
            return true;
        }
        if age(&self.heard) >= limit {
            return false;
        }
        self.release();
        if age(&self.said) >= limit / 8 {
            self.post(Channel::Control, sign());
            self.flush();
        }
        true
    }

    /// Whether small frames leave at once, as the system says of the connection.
    ///
    /// # Errors
    /// The connection is over.
    pub fn is_prompt(&self) -> io::Result<bool> {
        let mut prompt = false;
        // SAFETY: the stream lives; the name is a C string; `prompt` is written to.
        checked(unsafe {
            nng_sys::nng_stream_get_bool(self.raw(), NO_DELAY.as_ptr(), &raw mut prompt)
        })?;
        Ok(prompt)
    }

    /// Why the connection did not come about, if TLS knows.
    pub fn failure(&self) -> Option<String> {
        self.failure.as_ref().and_then(Failure::get)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The last holder may be one of NNG's threads in a callback of ours, for whose end
        // it must not wait; but somebody must, before buffers and stream are freed.
        self.close();
        let operations = [self.receiving.take(), self.sending.take()];
        let stream = self.stream.take();
        let memory = (
            std::mem::take(&mut self.input.lock().buffer),
            std::mem::take(&mut *self.output.lock()),
        );
        io_thread::handle().spawn(async move {
            operations.into_iter().flatten().for_each(stop);
            drop(memory);
            drop(stream);
        });
    }
}

/// Takes frames out of their lines. Segments are put back among their bytes, which takes a while: not
/// under the lock, as those who have something to post hold the dispatcher's.
fn take_next(output: &mut MutexGuard<'_, Output>) {
    let next = &mut **output;
    for line in [&mut next.control, &mut next.data] {
        let room = BATCH - next.current.len();
        let now = room.min(line.len());
        next.current.extend(line.drain(..now));
    }
    next.done = 0;
    if next.current.iter().any(|frame| !frame.insets().is_empty()) {
        let frames = std::mem::take(&mut next.current);
        next.sending = true;
        let plain = MutexGuard::unlocked(output, || frames.into_iter().map(Frame::plain).collect());
        output.sending = false;
        if !output.over {
            output.current = plain;
        }
    }
}

/// Makes an asynchronous operation of NNG's. `done` gets it, and the bytes transferred. It
/// must be ended by [`stop`], not just dropped.
fn operation(
    done: impl Fn(&Aio, Result<usize, nng::Error>) + Send + Sync + 'static,
) -> io::Result<Aio> {
    let aio = Aio::new(move |aio, result| {
        match result {
            // The crate knows of no operations on streams; to it, these are sleeps.
            AioResult::Sleep(Ok(())) => {
                // SAFETY: asked about the operation that has just ended.
                let count = unsafe { nng_sys::nng_aio_count(aio.nng_aio()) };
                done(&aio, Ok(count));
            }
            AioResult::Sleep(Err(e)) => done(&aio, Err(e)),
            AioResult::Send(_) | AioResult::Recv(_) => {}
        }
    });
    aio.map_err(io_error)
}

/// Ends an operation for good, and waits for its callback. Were it dropped while that runs, the
/// callback would have the last of it, and wait for itself. Not to be called by a callback.
fn stop(aio: Aio) {
    // SAFETY: the handle lives as long as `aio`.
    unsafe { nng_sys::nng_aio_stop(aio.nng_aio()) };
}

/// Readies an operation.
///
/// # Safety
/// None may be under way with it, and one must be begun with it right now. The memory must
/// stay until that is over.
unsafe fn begin(aio: &Aio, pieces: &[nng_sys::nng_iov]) -> *mut nng_sys::nng_aio {
    // SAFETY: `pieces` are at most eight, as NNG wants it, which copies them.
    unsafe {
        aio.set_state(AioState::Sleeping, Ordering::SeqCst);
        let raw = aio.nng_aio();
        nng_sys::nng_aio_set_iov(raw, pieces.len() as u32, pieces.as_ptr());
        raw
    }
}

/// NNG's error in the words of the system.
pub fn io_error(e: nng::Error) -> io::Error {
    use io::ErrorKind as Kind;
    let kind = match e {
        nng::Error::AddressInUse => Kind::AddrInUse,
        nng::Error::AddressInvalid => Kind::AddrNotAvailable,
        nng::Error::ConnectionRefused => Kind::ConnectionRefused,
        nng::Error::ConnectionReset | nng::Error::ConnectionShutdown | nng::Error::Closed => {
            Kind::ConnectionReset
        }
        nng::Error::PermissionDenied => Kind::PermissionDenied,
        nng::Error::TimedOut => Kind::TimedOut,
        nng::Error::OutOfMemory => Kind::OutOfMemory,
        _ => Kind::Other,
    };
    let text = match e {
        nng::Error::AddressInvalid => {
            "no such address: the host has none, or it is not this machine's".into()
        }
        nng::Error::ConnectionRefused => "connection refused: nobody listens there".into(),
        nng::Error::AddressInUse => "the port is in use already".into(),
        nng::Error::OutOfFiles => "too many files are open".into(),
        nng::Error::DestUnreachable => "the host is unreachable".into(),
        nng::Error::TimedOut => "timed out".into(),
        nng::Error::EntryNotFound => "nobody listens at this path".into(),
        other => other.to_string().to_lowercase(),
    };
    io::Error::new(kind, text)
}

fn checked(code: c_int) -> io::Result<()> {
    match std::num::NonZeroU32::new(code as u32) {
        None => Ok(()),
        Some(code) => Err(io_error(code.into())),
    }
}

/// Starts NNG, whose threads shall not take signals that are meant for the main one.
fn init() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // Whatever is done first with NNG starts its threads; this does nothing else.
        crate::sys::signals::with_all_blocked(|| drop(nng::Socket::new(nng::Protocol::Pair1)));
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

/// A URL that is listened at.
pub struct Listener {
    raw: Arc<RawListener>,
    accepting: Option<Aio>,
    port: u16,
}

/// A URL that is listened at. Ends listening when it is dropped; connections stay.
pub enum Listening {
    Socket(Listener),
    WebSocket(Route),
}

/// Listens at a URL and accepts connections, each of which is handed to `accepted` to be
/// [started](Connection::start). With port 0, one is chosen.
///
/// # Errors
/// The port is taken, or the host is none of this machine's.
pub fn listen(
    url: &NetworkUrl,
    identity: Option<&Identity>,
    accepted: impl Fn(Arc<Connection>) + Send + Sync + 'static,
) -> io::Result<Listening> {
    if url.scheme.has_path() {
        listen_websocket(url, identity, accepted).map(Listening::WebSocket)
    } else {
        Listener::bind(url, identity, accepted).map(Listening::Socket)
    }
}

impl Listening {
    /// The port, which the URL may have left open.
    pub fn port(&self) -> u16 {
        match self {
            Listening::Socket(listener) => listener.port(),
            Listening::WebSocket(route) => route.port(),
        }
    }
}

struct RawListener(AtomicPtr<nng_sys::nng_stream_listener>);

impl RawListener {
    fn get(&self) -> *mut nng_sys::nng_stream_listener {
        self.0.load(Ordering::Relaxed)
    }

    fn accept(&self, aio: &Aio) {
        // SAFETY: this is called at first, and then by the end of the operation before.
        unsafe {
            let raw = begin(aio, &[]);
            nng_sys::nng_stream_listener_accept(self.get(), raw);
        }
    }
}

impl Drop for RawListener {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { nng_sys::nng_stream_listener_free(self.get()) };
    }
}

impl Listener {
    /// See [`listen`]. The URL is of TCP, or of TLS over it.
    pub(super) fn bind(
        url: &NetworkUrl,
        identity: Option<&Identity>,
        accepted: impl Fn(Arc<Connection>) + Send + Sync + 'static,
    ) -> io::Result<Listener> {
        init();
        let text = c_url(url)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: `text` is a C string; `raw` is written to.
        checked(unsafe { nng_sys::nng_stream_listener_alloc(&mut raw, text.as_ptr()) })?;
        let raw = Arc::new(RawListener(AtomicPtr::new(raw)));
        if let Some(identity) = identity {
            // SAFETY: the listener lives.
            unsafe { engine::secure_listener(raw.get(), identity) }.map_err(io_error)?;
        }
        // SAFETY: the listener lives; the name is a C string.
        checked(unsafe {
            nng_sys::nng_stream_listener_set_bool(raw.get(), NO_DELAY.as_ptr(), true)
        })?;
        // SAFETY: the listener lives.
        checked(unsafe { nng_sys::nng_stream_listener_listen(raw.get()) })?;
        let mut port = c_int::from(url.port);
        if port == 0 {
            let name = nng_sys::NNG_OPT_TCP_BOUND_PORT.as_ptr().cast();
            // SAFETY: the listener lives; the name is a C string; `port` is written to.
            checked(unsafe { nng_sys::nng_stream_listener_get_int(raw.get(), name, &mut port) })?;
        }
        let weak = Arc::downgrade(&raw);
        let accepting = operation(move |aio, result| {
            let Some(listener) = weak.upgrade() else {
                return;
            };
            match result {
                Ok(_) => {
                    // SAFETY: asked about the operation that has just ended.
                    let stream = unsafe { nng_sys::nng_aio_get_output(aio.nng_aio(), 0) };
                    if let Some(stream) = NonNull::new(stream.cast()) {
                        if let Ok(connection) = Connection::new(Stream(stream), None) {
                            accepted(connection);
                        }
                    }
                    listener.accept(aio);
                }
                Err(nng::Error::Closed) => {}
                Err(_) => {
                    // Out of descriptors, most likely: better to be slow than to spin.
                    let aio = aio.clone();
                    io_thread::handle().spawn(async move {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        listener.accept(&aio);
                        // Not the last holder's: see `stop`.
                        drop(aio);
                    });
                }
            }
        })?;
        raw.accept(&accepting);
        Ok(Listener {
            raw,
            accepting: Some(accepting),
            port: port as u16,
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Listener {
    /// Ends listening; connections stay.
    fn drop(&mut self) {
        // SAFETY: freed with the last holder, which may be a callback.
        unsafe { nng_sys::nng_stream_listener_close(self.raw.get()) };
        if let Some(aio) = self.accepting.take() {
            stop(aio);
        }
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub enum DialError {
    Failed(io::Error),
    /// TLS has said no, for this reason.
    Untrusted(String),
    Interrupted,
    /// The time that the caller gave is over.
    TimedOut,
}

/// Connects to a listener; call [`Connection::start`] next. `until` is the latest time, and
/// `interrupted` is asked whether to go on.
///
/// # Errors
/// See [`DialError`]. With TLS over TCP, the handshake follows with the first bytes.
pub fn dial(
    url: &NetworkUrl,
    trust: Option<&Trust>,
    until: Option<Instant>,
    interrupted: impl Fn() -> bool,
) -> Result<Arc<Connection>, DialError> {
    init();
    let failed = DialError::Failed;
    let text = c_url(url).map_err(failed)?;
    let mut raw = std::ptr::null_mut();
    // SAFETY: `text` is a C string; `raw` is written to.
    checked(unsafe { nng_sys::nng_stream_dialer_alloc(&mut raw, text.as_ptr()) })
        .map_err(failed)?;
    let dialer = RawDialer(raw);
    // SAFETY: the dialer lives; the name is a C string.
    checked(unsafe { nng_sys::nng_stream_dialer_set_bool(dialer.0, NO_DELAY.as_ptr(), true) })
        .map_err(failed)?;
    let failure = match trust {
        Some(trust) => {
            // SAFETY: the dialer lives.
            let secured = unsafe { engine::secure_dialer(dialer.0, trust, &url.host) };
            Some(secured.map_err(|e| failed(io_error(e)))?)
        }
        None => None,
    };

    let bell = Arc::new(Bell::new());
    let connected = Arc::new(Mutex::new(None));
    let aio = {
        let (bell, connected) = (bell.clone(), connected.clone());
        operation(move |aio, result| {
            let result = result.map(|_| {
                // SAFETY: asked about the operation that has just ended.
                let stream = unsafe { nng_sys::nng_aio_get_output(aio.nng_aio(), 0) };
                NonNull::new(stream.cast()).map(Stream)
            });
            *connected.lock() = Some(result);
            bell.ring();
        })
        .map_err(failed)?
    };
    // SAFETY: the dialer lives until the operation is over, as `stop` waits for that.
    unsafe {
        let raw = begin(&aio, &[]);
        nng_sys::nng_stream_dialer_dial(dialer.0, raw);
    }
    let left = until.map(|t| t.saturating_duration_since(Instant::now()));
    let patience = left.map_or(CONNECT, |left| left.min(CONNECT));
    let waited = bell.wait(Some(patience), interrupted, || connected.lock().is_some());
    stop(aio);
    drop(dialer);
    let result = connected.lock().take();
    match (waited, result) {
        (Waited::Interrupted, _) => Err(DialError::Interrupted),
        (_, Some(Ok(Some(stream)))) => Connection::new(stream, failure).map_err(failed),
        (Waited::TimedOut, _) if patience < CONNECT => Err(DialError::TimedOut),
        (Waited::TimedOut, _) => Err(failed(io_error(nng::Error::TimedOut))),
        (_, Some(Err(e))) => Err(match failure.as_ref().and_then(Failure::get) {
            Some(reason) => DialError::Untrusted(reason),
            None => failed(io_error(e)),
        }),
        (_, _) => Err(failed(io::ErrorKind::Other.into())),
    }
}

struct RawDialer(*mut nng_sys::nng_stream_dialer);

impl Drop for RawDialer {
    fn drop(&mut self) {
        // SAFETY: ours, and not used after this.
        unsafe { nng_sys::nng_stream_dialer_free(self.0) };
    }
}

/// The host's end of a link to a daemon.
pub struct NngLink(Arc<Connection>);

impl NngLink {
    pub fn new(connection: Arc<Connection>) -> Arc<NngLink> {
        Arc::new(NngLink(connection))
    }
}

impl Link for NngLink {
    fn post(&self, frame: Frame) {
        self.0.post(Channel::Data, frame);
    }

    fn control(&self, message: Control) {
        let frame = Frame::bare(&ToDaemon::Control(message));
        self.0.post(Channel::Control, frame);
    }

    fn flush(&self) {
        self.0.flush();
    }

    fn close(&self) {
        self.0.close();
    }
}

/// Hands bytes that are here to a reader, as many at a time as it has room for. Take out
/// what they make after each.
///
/// # Errors
/// There is no memory for what has been announced.
pub fn feed<M: DeserializeOwned>(reader: &mut FrameReader<M>, bytes: &[u8]) -> io::Result<usize> {
    let (taken, _) = reader.fill(|room| {
        let now = room.len().min(bytes.len());
        for (slot, byte) in room.iter_mut().zip(&bytes[..now]) {
            slot.write(*byte);
        }
        Ok(now)
    })?;
    Ok(taken)
}
