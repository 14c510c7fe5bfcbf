//! Arguments that are mirai, or lists of mirai, and stand for their values.
//!
//! A value that R has read already takes its place here. Of the others the tasks are named to the core, which attaches
//! their values, unread, when they are there; the arguments have `NULL` in their places, and *places* tell the daemon
//! where the values belong. Each place is four integers from 1:
//!
//! | number | what it says |
//! | --- | --- |
//! | list | 1: the objects in `...`; 2: those in `.args`; 3: the list that is the second of these, the `.args` of a map |
//! | argument | which one of the list |
//! | element | which one of the argument, a list; 0: the argument itself |
//! | value | which of the values that are attached |
//!
//! A list counts as one of mirai if all its elements are.

use std::ffi::c_void;
use std::sync::Arc;

use extendr_ffi::{
    R_ClearExternalPtr, R_ExternalPtrAddr, R_MakeExternalPtr, R_NamesSymbol, R_NilValue,
    R_RegisterCFinalizerEx, R_SetExternalPtrAddr, Rboolean, Rf_allocVector, Rf_getAttrib,
    Rf_protect, Rf_setAttrib, Rf_unprotect, Rf_xlength, SET_VECTOR_ELT, SEXP, SEXPTYPE, TYPEOF,
    VECTOR_ELT,
};
use mirai_core::task::Task;
use rustc_hash::FxHashMap;

use crate::forks;
use crate::gc;
use crate::r;
use crate::tasks::{is_mirai, needed_task, read_value};

/// The arguments of a task, as R objects, which the caller protects by [`frame`](Self::frame).
#[derive(Clone, Copy)]
pub(super) struct Arguments {
    pub(super) globals: SEXP,
    pub(super) args: SEXP,
    /// See the module's documentation; `NULL` if there are none.
    pub(super) places: SEXP,
    /// Keeps the tasks until [`take`](Self::take); `NULL` if there are none.
    keeper: SEXP,
    /// The error value of an argument; `NULL` if there is none.
    pub(super) failure: SEXP,
    /// Keeps all of these.
    pub(super) frame: SEXP,
}

/// Elements of [`Arguments::frame`].
const GLOBALS: isize = 0;
const ARGS: isize = 1;
const PLACES: isize = 2;
const KEEPER: isize = 3;
const FAILURE: isize = 4;

/// What is found among the arguments.
#[derive(Default)]
struct Needs {
    tasks: Vec<Arc<Task>>,
    /// Their numbers from 0.
    known: FxHashMap<*const Task, usize>,
    places: Vec<i32>,
}

impl Arguments {
    /// As they are.
    pub(super) unsafe fn plain(globals: SEXP, args: SEXP) -> Arguments {
        // SAFETY: R's own constant.
        let null = unsafe { R_NilValue };
        Arguments {
            globals,
            args,
            places: null,
            keeper: null,
            failure: null,
            frame: null,
        }
    }

    /// The arguments of a task: lists with names, or `NULL`. Only in those that are to be searched, mirai stand for their
    /// values. `of_map`: `args` are those of a map.
    ///
    /// On R's main thread, which may be left by a long jump; both are protected.
    pub(super) unsafe fn new(
        globals: SEXP,
        search_globals: bool,
        args: SEXP,
        search_args: bool,
        of_map: bool,
    ) -> Arguments {
        // SAFETY: on R's main thread; `inner` is an element of `args`, which has two if it is that of a map. What was
        // allocated is protected, or in `frame`, which is.
        unsafe {
            let inner = if of_map { VECTOR_ELT(args, 1) } else { args };
            let in_globals = search_globals && has_mirai(globals);
            let in_args = search_args && has_mirai(inner);
            if !in_globals && !in_args {
                return Arguments::plain(globals, args);
            }
            if gc::worth_collecting_passed() {
                gc::collect();
            }
            let frame = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, 5));
            SET_VECTOR_ELT(frame, GLOBALS, globals);
            SET_VECTOR_ELT(frame, ARGS, args);
            let keeper = R_MakeExternalPtr(std::ptr::null_mut(), R_NilValue, R_NilValue);
            SET_VECTOR_ELT(frame, KEEPER, keeper);
            R_RegisterCFinalizerEx(keeper, Some(finalize), Rboolean::FALSE);
            let needs = Box::into_raw(Box::<Needs>::default());
            R_SetExternalPtrAddr(keeper, needs.cast());
            if in_globals {
                let copy = copied(globals);
                SET_VECTOR_ELT(frame, GLOBALS, copy);
                fill(frame, copy, 1);
            }
            if in_args && of_map {
                let outer = copied(args);
                SET_VECTOR_ELT(frame, ARGS, outer);
                let copy = copied(inner);
                SET_VECTOR_ELT(outer, 1, copy);
                fill(frame, copy, 3);
            } else if in_args {
                let copy = copied(args);
                SET_VECTOR_ELT(frame, ARGS, copy);
                fill(frame, copy, 2);
            }
            let places = std::ptr::from_ref(&(*needs).places);
            if !(*places).is_empty() {
                SET_VECTOR_ELT(frame, PLACES, r::integers(&*places));
            }
            Rf_unprotect(1);
            Arguments {
                globals: VECTOR_ELT(frame, GLOBALS),
                args: VECTOR_ELT(frame, ARGS),
                places: VECTOR_ELT(frame, PLACES),
                keeper,
                failure: VECTOR_ELT(frame, FAILURE),
                frame,
            }
        }
    }

    /// Takes the tasks that are needed, in the order of their values. Nothing the second time.
    ///
    /// On R's main thread; `frame` is protected. R is called for reading only.
    pub(super) unsafe fn take(self) -> Vec<Arc<Task>> {
        // SAFETY: `keeper` is `NULL` or ours.
        unsafe {
            if TYPEOF(self.keeper) != SEXPTYPE::EXTPTRSXP {
                return Vec::new();
            }
            let needs = R_ExternalPtrAddr(self.keeper).cast::<Needs>();
            needs
                .as_mut()
                .map_or_else(Vec::new, |needs| std::mem::take(&mut needs.tasks))
        }
    }
}

unsafe extern "C" fn finalize(keeper: SEXP) {
    // SAFETY: R calls it once with the pointer, whose address is from `Box::into_raw`. A forked process leaves alone what
    // its parent's threads may hold.
    unsafe {
        let needs: *mut c_void = R_ExternalPtrAddr(keeper);
        R_ClearExternalPtr(keeper);
        if !needs.is_null() && !forks::is_forked() {
            drop(Box::from_raw(needs.cast::<Needs>()));
        }
    }
}

/// Whether a list has a mirai, or a list of mirai.
unsafe fn has_mirai(list: SEXP) -> bool {
    // SAFETY: on R's main thread; `list` is protected, and indices are below its length.
    unsafe {
        if TYPEOF(list) != SEXPTYPE::VECSXP {
            return false;
        }
        let mut elements = (0..Rf_xlength(list)).map(|i| VECTOR_ELT(list, i));
        elements.any(|x| is_mirai(x) || is_list_of_mirai(x))
    }
}

unsafe fn is_list_of_mirai(x: SEXP) -> bool {
    // SAFETY: as above.
    unsafe {
        TYPEOF(x) == SEXPTYPE::VECSXP && {
            let n = Rf_xlength(x);
            n > 0 && (0..n).all(|i| is_mirai(VECTOR_ELT(x, i)))
        }
    }
}

/// A list with the same elements and names, and no other attributes.
unsafe fn copied(list: SEXP) -> SEXP {
    // SAFETY: on R's main thread; `list` is protected, and so is the copy until it is returned.
    unsafe {
        let n = Rf_xlength(list);
        let copy = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n));
        for i in 0..n {
            SET_VECTOR_ELT(copy, i, VECTOR_ELT(list, i));
        }
        let names = Rf_protect(Rf_getAttrib(list, R_NamesSymbol));
        if names != R_NilValue {
            Rf_setAttrib(copy, R_NamesSymbol, names);
        }
        Rf_unprotect(2);
        copy
    }
}

/// Puts values in the place of mirai in one of the lists, a copy, or notes which belong there.
unsafe fn fill(frame: SEXP, list: SEXP, number: i32) {
    // SAFETY: on R's main thread; `frame` is protected and has `list`, and so each copy that is put there.
    unsafe {
        for i in 0..Rf_xlength(list) {
            let argument = VECTOR_ELT(list, i);
            if is_mirai(argument) {
                put(frame, list, i, [number, i as i32 + 1, 0]);
            } else if is_list_of_mirai(argument) {
                let copy = copied(argument);
                SET_VECTOR_ELT(list, i, copy);
                for j in 0..Rf_xlength(copy) {
                    put(frame, copy, j, [number, i as i32 + 1, j as i32 + 1]);
                }
            }
        }
    }
}

/// The same for one mirai in a list.
unsafe fn put(frame: SEXP, list: SEXP, i: isize, place: [i32; 3]) {
    // SAFETY: as `fill`. No reference to what the keeper has is held while R is called.
    unsafe {
        let mirai = Rf_protect(VECTOR_ELT(list, i));
        match needed_task(mirai) {
            Some(task) => {
                let needs = R_ExternalPtrAddr(VECTOR_ELT(frame, KEEPER)).cast::<Needs>();
                let needs = &mut *needs;
                let next = needs.tasks.len();
                let number = *needs.known.entry(Arc::as_ptr(&task)).or_insert(next);
                if number == next {
                    needs.tasks.push(task);
                }
                needs.places.extend(place);
                needs.places.push(number as i32 + 1);
                SET_VECTOR_ELT(list, i, R_NilValue);
            }
            None => {
                let value = Rf_protect(read_value(mirai));
                if is_error(value) {
                    SET_VECTOR_ELT(frame, FAILURE, value);
                }
                SET_VECTOR_ELT(list, i, value);
                Rf_unprotect(1);
            }
        }
        Rf_unprotect(1);
    }
}

/// Whether a value is an error value.
pub(super) unsafe fn is_error(value: SEXP) -> bool {
    // SAFETY: on R's main thread; `value` is protected.
    unsafe { r::Rf_inherits(value, c"errorValue".as_ptr()) == Rboolean::TRUE }
}
