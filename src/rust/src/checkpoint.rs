//! `mirai_map(.checkpoint = )`: the results of a map in a file, from which the same map takes them later.
//!
//! A result is stored under a key: of the digests (`serialize/digest.rs`) of the call, `.f`, `.args`, `...` and the
//! element; of how many equal elements came before it, because random results of these must differ; and of the element's
//! random number stream, if a seed was set.

use std::time::{Duration, Instant};

use extendr_ffi::{
    R_CallMethodDef, R_ClearExternalPtr, R_ExternalPtrAddr, R_ExternalPtrTag, R_MakeExternalPtr,
    R_NilValue, R_RegisterCFinalizerEx, Rboolean, Rf_protect, Rf_unprotect, Rf_xlength, R_CHAR,
    SEXP, SEXPTYPE, STRING_ELT, TYPEOF, VECTOR_ELT,
};
use mirai_core::checkpoint::{Checkpoint, Hasher, Key, OpenError, Status};
use mirai_core::protocol::Stream;
use mirai_core::sys::{Bell, Waited};
use rustc_hash::FxHashMap;

use crate::error::Error;
use crate::events::{self, Events};
use crate::forks;
use crate::r;
use crate::serialize::digest;
use crate::session;
use crate::tasks::new_stored;

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"open_checkpoint", open_checkpoint as *const (), 3),
        r::routine(c"close_checkpoint", close_checkpoint as *const (), 1),
        r::routine(c"checkpoint_failure", checkpoint_failure as *const (), 2),
    ]
}

r::symbols! {
    TAG = c"mirai_checkpoint";
}

/// What the external pointer points to that a map has as an attribute.
struct Map {
    /// Until the map is submitted: its tasks have it then.
    checkpoint: Option<Checkpoint>,
    status: Option<Status>,
    /// Whether the failure has been told.
    told: bool,
    common: Hasher,
    /// Of each element, without its stream.
    keys: Vec<Key>,
    /// How many elements have a digest.
    seen: FxHashMap<Key, u32>,
    /// Of the element that is being submitted.
    current: Option<(Key, Option<Stream>)>,
}

/// The map of a pointer; `None` for `NULL`, or a copy that came through serialization.
unsafe fn map<'a>(pointer: SEXP) -> Option<&'a mut Map> {
    // SAFETY: on R's main thread. The type and the tag say that the address is null or that of a `Map`, which lives until
    // the pointer is finalized. No caller keeps two of them, or one while R is called.
    unsafe {
        if TYPEOF(pointer) != SEXPTYPE::EXTPTRSXP || R_ExternalPtrTag(pointer) != TAG.get() {
            return None;
        }
        R_ExternalPtrAddr(pointer).cast::<Map>().as_mut()
    }
}

/// Whether an object is the pointer that a map has.
///
/// # Safety
/// On R's main thread; `object` is an external pointer.
pub(crate) unsafe fn is_pointer(object: SEXP) -> bool {
    // SAFETY: as this function demands.
    unsafe { R_ExternalPtrTag(object) == TAG.get() }
}

unsafe extern "C" fn finalize(pointer: SEXP) {
    // SAFETY: R calls it once with the pointer, whose address is null or from `Box::into_raw`.
    unsafe {
        let map = R_ExternalPtrAddr(pointer).cast::<Map>();
        R_ClearExternalPtr(pointer);
        // A forked process leaves alone what it shares with its parent's threads.
        if !map.is_null() && !forks::is_forked() {
            drop(Box::from_raw(map));
        }
    }
}

/// `.Call(open_checkpoint, file, common, elements)`: the checkpoint of a map, opened. `common` is a list of what the
/// elements have in common, named by the arguments of `mirai_map()`.
unsafe extern "C-unwind" fn open_checkpoint(file: SEXP, common: SEXP, elements: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments. What owns memory is in the keeping of `pointer`,
    // and borrowed only while R is not called, when an error may leave this by a long jump.
    unsafe {
        if forks::is_forked() {
            forks::error().raise();
        }
        let new = Box::new(Map {
            checkpoint: None,
            status: None,
            told: false,
            common: Hasher::default(),
            keys: Vec::new(),
            seen: FxHashMap::default(),
            current: None,
        });
        let pointer = Rf_protect(R_MakeExternalPtr(
            Box::into_raw(new).cast(),
            TAG.get(),
            R_NilValue,
        ));
        R_RegisterCFinalizerEx(pointer, Some(finalize), Rboolean::FALSE);
        let names = extendr_ffi::Rf_getAttrib(common, extendr_ffi::R_NamesSymbol);
        for i in 0..Rf_xlength(common) {
            match digest::digest(VECTOR_ELT(common, i)) {
                Ok(key) => {
                    if let Some(map) = map(pointer) {
                        map.common.update(&key.0);
                    }
                }
                Err(why) => {
                    let name = std::ffi::CStr::from_ptr(R_CHAR(STRING_ELT(names, i)));
                    undigested(name.to_str().unwrap_or_default(), why, "").raise()
                }
            }
        }
        for i in 0..Rf_xlength(elements) {
            match digest::digest(VECTOR_ELT(elements, i)) {
                Ok(key) => {
                    if let Some(map) = map(pointer) {
                        map.add(key);
                    }
                }
                Err(why) => undigested(".x", why, &format!("in element {}, ", i + 1)).raise(),
            }
        }
        loop {
            match open(pointer, file) {
                Ok(true) => break,
                Ok(false) => events::serve(),
                Err(error) => error.raise(),
            }
        }
        // An earlier map of this session may have results that are still to be written.
        wait_until_written(pointer);
        Rf_unprotect(1);
        pointer
    }
}

/// `place`: where in the argument.
fn undigested(name: &str, why: digest::Undigested, place: &str) -> Error {
    Error::argument(format_args!(
        "'{name}' cannot be used with '.checkpoint': {place}{why}"
    ))
}

/// False if R has to act on Ctrl-C first. A time limit of R's does not end the reading of a large file.
unsafe fn open(pointer: SEXP, file: SEXP) -> Result<bool, Error> {
    // SAFETY: on R's main thread; both are protected, and R is called for reading only.
    unsafe {
        let Some((map, file)) = map(pointer).zip(r::as_str(file)) else {
            return Err(Error::argument("'.checkpoint' must be the name of a file"));
        };
        let checkpoint = match Checkpoint::open(file.as_ref(), &r::interrupted) {
            Ok(checkpoint) => checkpoint,
            Err(OpenError::Stopped) => return Ok(false),
            Err(error) => {
                let text = format_args!("'.checkpoint' cannot use '{file}': {error}");
                return Err(Error::argument(text));
            }
        };
        map.seen = FxHashMap::default();
        map.status = Some(checkpoint.status());
        map.checkpoint = Some(checkpoint);
        Ok(true)
    }
}

impl Map {
    fn add(&mut self, element: Key) {
        let count = self.seen.entry(element).or_default();
        let mut hasher = self.common.clone();
        hasher.update(&element.0);
        hasher.update(&count.to_le_bytes());
        *count += 1;
        self.keys.push(hasher.finish());
    }

    fn key(&self, i: usize, stream: Option<Stream>) -> Option<Key> {
        let key = *self.keys.get(i)?;
        let Some(stream) = stream else {
            return Some(key);
        };
        let mut hasher = Hasher::default();
        hasher.update(&key.0);
        stream
            .iter()
            .for_each(|seed| hasher.update(&seed.to_le_bytes()));
        Some(hasher.finish())
    }
}

/// Begins with an element: if its result is there, it becomes that of the mirai, and there is nothing to submit.
///
/// # Safety
/// On R's main thread; `checkpoint` is such a pointer or `NULL`, `pointer` a new mirai's `.task`, both protected. R is
/// called for reading only.
pub(crate) unsafe fn restore(
    checkpoint: SEXP,
    i: isize,
    pointer: SEXP,
    name: Option<&str>,
    profile: SEXP,
) -> bool {
    // SAFETY: as this function demands.
    unsafe {
        let Some(map) = map(checkpoint) else {
            return false;
        };
        // Also if there is nothing to submit: the next element has the same stream as in the earlier session.
        let stream =
            session::with_profile(profile, |current| current.and_then(|p| p.task_stream()));
        let Some(key) = map.key(i as usize, stream) else {
            return false;
        };
        let stored = map.checkpoint.as_ref().and_then(|c| c.find(&key));
        match stored {
            Some(stored) => {
                new_stored(pointer, stored, name);
                session::with_profile(profile, |current| {
                    current
                        .and_then(|p| p.host())
                        .inspect(|host| host.count_unsubmitted());
                });
                true
            }
            None => {
                map.current = Some((key, stream));
                false
            }
        }
    }
}

/// The element that [`restore`] began with, and has not found: the checkpoint, its key and its stream.
///
/// # Safety
/// As [`restore`].
pub(crate) unsafe fn current<'a>(
    checkpoint: SEXP,
) -> Option<(&'a Checkpoint, Key, Option<Stream>)> {
    // SAFETY: as this function demands.
    unsafe {
        let map = map(checkpoint)?;
        let (key, stream) = map.current?;
        Some((map.checkpoint.as_ref()?, key, stream))
    }
}

/// `.Call(close_checkpoint, checkpoint)`: the map is submitted. The file is closed when its tasks have resolved.
unsafe extern "C-unwind" fn close_checkpoint(checkpoint: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument.
    unsafe {
        if let Some(map) = map(checkpoint) {
            map.checkpoint = None;
            map.keys = Vec::new();
            map.seen = FxHashMap::default();
        }
        R_NilValue
    }
}

/// R waits this long for results to be written. A file system may have gone away.
const WRITING: Duration = Duration::from_secs(10);

unsafe fn wait_until_written(checkpoint: SEXP) {
    // A forked process has no thread that writes.
    if forks::is_forked() {
        return;
    }
    // SAFETY: on R's main thread; `checkpoint` is protected. No map is borrowed while R is called.
    unsafe {
        let end = Instant::now() + WRITING;
        let status = || map(checkpoint).and_then(|map| map.status.as_ref());
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let is_written = || status().is_none_or(Status::is_written);
            match Bell::get().wait(Some(left), Events::new(), is_written) {
                Waited::Interrupted => events::serve(),
                Waited::Ready | Waited::TimedOut => return,
            }
        }
    }
}

/// `.Call(checkpoint_failure, checkpoint, wait)`: why results are no longer stored, the first time that it is asked for;
/// otherwise `NULL`. `wait`: until those that are there have been written.
unsafe extern "C-unwind" fn checkpoint_failure(checkpoint: SEXP, wait: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments. No map is borrowed while R is called.
    unsafe {
        if r::as_flag(wait) == Some(true) {
            wait_until_written(checkpoint);
        }
        let failure = map(checkpoint).filter(|map| !map.told).and_then(|map| {
            let failure = map.status.as_ref()?.failure()?;
            map.told = true;
            Some(failure)
        });
        match failure {
            Some(text) => r::string(&text),
            None => R_NilValue,
        }
    }
}
