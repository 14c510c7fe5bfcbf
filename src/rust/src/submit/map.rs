//! The elements of a map, which have a payload in common: it is serialized once.

use std::sync::Arc;
use std::time::Duration;

use extendr_ffi::{
    R_ClearExternalPtr, R_ExternalPtrAddr, R_MakeExternalPtr, R_NilValue, R_RegisterCFinalizerEx,
    R_SetExternalPtrAddr, Rboolean, Rf_allocVector, Rf_protect, Rf_unprotect, Rf_xlength,
    SET_VECTOR_ELT, SEXP, SEXPTYPE, TYPEOF, VECTOR_ELT,
};
use mirai_core::dispatcher::{Rules, Target};
use mirai_core::host;
use mirai_core::protocol::Kind;
use mirai_core::task::{Constants, Outcome, Payload};

use super::arguments::{is_error, Arguments};
use super::{fail, fail_for, milliseconds, wait_for_room, write_payload};
use crate::checkpoint;
use crate::error::{self, Class};
use crate::forks;
use crate::r::{self, Rf_ScalarLogical};
use crate::rules;
use crate::serialize::{self, buffer};
use crate::session::{self, Found};
use crate::tasks::{is_mirai, needed_task, new_pending, new_task_needing, read_value, shared_task};

/// `.Call(submit_map, expr, globals, args, elements, names, timeout, profile, rules, checkpoint, dots)`: a list of mirai, one
/// for each of `elements`, a list. Each evaluates `expr` with its element as `.x`, or with the value of that, if it is a
/// mirai; what they have in common is serialized once. `args` are `.f` and `.args`. `timeout` and `rules` are those of each
/// element, as of `submit`, and `dots` are its `names`. `checkpoint` is a value of `open_checkpoint`, or `NULL`. `FALSE` if
/// the profile is synchronous.
pub(super) unsafe extern "C-unwind" fn submit_map(
    expr: SEXP,
    globals: SEXP,
    args: SEXP,
    elements: SEXP,
    names: SEXP,
    timeout: SEXP,
    profile: SEXP,
    rules: SEXP,
    checkpoint: SEXP,
    dots: SEXP,
) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the arguments. `out` and `keeper` are protected, and
    // `out` has each new mirai at once.
    unsafe {
        let when = match session::find(profile) {
            Found::Host { asks } => rules::when(rules, profile, asks),
            Found::Nothing => error::raise(Class::NoDaemons, "no daemons set"),
            Found::Sync if checkpoint != R_NilValue => error::raise(
                Class::Argument,
                "'.checkpoint' must be left out with daemons(sync = TRUE)",
            ),
            Found::Sync => return Rf_ScalarLogical(0),
            Found::Forked => forks::error().raise(),
        };
        Rf_protect(when);
        let n = Rf_xlength(elements);
        let out = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n));
        // In R's keeping, because serializing an element may leave by a long jump.
        let keeper = Rf_protect(R_MakeExternalPtr(
            std::ptr::null_mut(),
            R_NilValue,
            R_NilValue,
        ));
        R_RegisterCFinalizerEx(keeper, Some(finalize_common), Rboolean::FALSE);
        let arguments = Arguments::new(globals, dots != R_NilValue, args, true, true);
        Rf_protect(arguments.frame);
        let broken = arguments.failure != R_NilValue;
        let common = !broken && write_payload(expr, arguments, when, profile);
        if common {
            keep_common(keeper, profile, timeout, rules, arguments);
        }
        for i in 0..n {
            let (env, pointer) = new_pending();
            SET_VECTOR_ELT(out, i, env);
            let element = VECTOR_ELT(elements, i);
            let name = name_at(names, i);
            if common && checkpoint::restore(checkpoint, i, pointer, name, profile) {
                continue;
            }
            if broken {
                fail_for(env, arguments.failure, profile);
                continue;
            }
            let mut sent = Element::of(element);
            if !common || !sent.failed && !serialize::write(buffer(), sent.object) {
                fail(env, profile);
                continue;
            }
            while !sent.failed {
                match submit_element(pointer, keeper, name, profile, checkpoint, sent) {
                    Submitted::Yes => break,
                    Submitted::NoRoom if wait_for_room(profile) => {}
                    // R has done something meanwhile.
                    Submitted::NoRoom | Submitted::Changed => {
                        sent = Element::of(element);
                        if !sent.failed && !serialize::write(buffer(), sent.object) {
                            error::raise(Class::Other, "a serialization hook has failed");
                        }
                    }
                }
            }
            if sent.failed {
                fail_for(env, sent.object, profile);
            }
        }
        release_common(keeper);
        Rf_unprotect(4);
        out
    }
}

/// An element as it is sent.
#[derive(Clone, Copy)]
struct Element {
    /// What is serialized: the value, or `NULL` in its place. R keeps it.
    object: SEXP,
    /// The mirai of which the element is the value.
    mirai: Option<SEXP>,
    /// It is the value of a mirai that has failed.
    failed: bool,
}

impl Element {
    unsafe fn of(element: SEXP) -> Element {
        // SAFETY: on R's main thread; `element` is protected.
        unsafe {
            if !is_mirai(element) {
                return Element {
                    object: element,
                    mirai: None,
                    failed: false,
                };
            }
            let unread = needed_task(element).is_some();
            let object = if unread {
                R_NilValue
            } else {
                read_value(element)
            };
            Element {
                object,
                mirai: unread.then_some(element),
                failed: is_error(object),
            }
        }
    }
}

/// What has become of an element.
enum Submitted {
    Yes,
    NoRoom,
    /// The value of the mirai that it is has been read meanwhile.
    Changed,
}

/// What the elements of a map have in common.
struct Common {
    constants: Arc<Constants>,
    timeout: Option<Duration>,
    rules: Option<Arc<Rules>>,
}

/// Makes constants of what is in the buffer, and has `keeper` keep them with the rest.
unsafe fn keep_common(
    keeper: SEXP,
    profile: SEXP,
    timeout: SEXP,
    rules: SEXP,
    arguments: Arguments,
) {
    // SAFETY: on R's main thread; `keeper` is protected and keeps nothing yet. The buffer is used here alone, and R is
    // called for reading only.
    unsafe {
        session::with_profile(profile, |current| {
            if let Some(host) = current.and_then(|p| p.host()) {
                let common = Box::new(Common {
                    constants: host.constants_needing((*buffer()).take(), arguments.take()),
                    timeout: r::as_number(timeout).map(milliseconds),
                    rules: rules::rules(rules),
                });
                R_SetExternalPtrAddr(keeper, Box::into_raw(common).cast());
            }
        });
    }
}

/// The submission was left by a long jump. As with a task, a forked process leaves what it kept
/// alone.
unsafe extern "C" fn finalize_common(keeper: SEXP) {
    // SAFETY: R calls it once with the pointer, on its main thread.
    unsafe {
        if !forks::is_forked() {
            release_common(keeper);
        }
    }
}

unsafe fn release_common(keeper: SEXP) {
    // SAFETY: `keeper`'s address is null or from `Box::into_raw`. It is cleared first, so nobody takes it twice.
    unsafe {
        let common = R_ExternalPtrAddr(keeper).cast::<Common>();
        R_ClearExternalPtr(keeper);
        if !common.is_null() {
            drop(Box::from_raw(common));
            // All of the map may be over, without what it has needed.
            host::cancel_unwanted();
        }
    }
}

/// Names in the log are at most this long, in bytes.
const MOST_OF_A_NAME: usize = 256;

/// The name of an element, by which the log calls its task; `None` if it has none.
unsafe fn name_at<'a>(names: SEXP, i: isize) -> Option<&'a str> {
    // SAFETY: on R's main thread; `names` is protected, and R keeps its strings.
    unsafe {
        if TYPEOF(names) != SEXPTYPE::STRSXP || i >= Rf_xlength(names) {
            return None;
        }
        let name = r::string_at(names, i)?;
        let mut end = name.len().min(MOST_OF_A_NAME);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        Some(&name[..end]).filter(|name| !name.is_empty())
    }
}

/// Submits the element in the buffer.
unsafe fn submit_element(
    pointer: SEXP,
    keeper: SEXP,
    name: Option<&str>,
    profile: SEXP,
    checkpoint: SEXP,
    element: Element,
) -> Submitted {
    // SAFETY: on R's main thread; `keeper`'s address is null or from `Box::into_raw`, and stays so meanwhile. The
    // buffer is used here alone.
    unsafe {
        session::with_profile(profile, |current| {
            let common = R_ExternalPtrAddr(keeper).cast::<Common>().as_ref();
            let profile = current.filter(|_| common.is_some());
            let host = profile.and_then(|p| p.host());
            if host.is_some_and(|h| !h.has_room((*buffer()).len() as u64)) {
                return Submitted::NoRoom;
            }
            let needs: Vec<_> = element
                .mirai
                .and_then(|m| shared_task(m))
                .into_iter()
                .collect();
            if needs.is_empty() && element.mirai.is_some() {
                return Submitted::Changed;
            }
            let kept = checkpoint::current(checkpoint);
            let payload = Payload {
                kind: Kind::Map,
                stream: match kept {
                    Some((_, _, stream)) => stream,
                    None => profile.and_then(|p| p.task_stream()),
                },
                constants: common.map(|common| common.constants.clone()),
                body: (*buffer()).take(),
            };
            let task = new_task_needing(pointer, payload, name, needs);
            if let Some((checkpoint, key, _)) = kept {
                task.keep_in(checkpoint.clone(), key);
            }
            match host.zip(common) {
                Some((host, common)) => {
                    host.submit_with(task, common.timeout, Target::Any, common.rules.clone());
                }
                // Daemons were reset meanwhile (by a finalizer, say).
                None => task.resolve(Outcome::Reset),
            }
            Submitted::Yes
        })
    }
}
