//! mirai objects: what they are, how they are made and read.
//!
//! A mirai is an environment that holds `data` and, hidden, `.task`: an external
//! pointer to the core's [`Task`], whose protected value is the environment
//! itself. While the value has not been read, `data` is an active binding whose
//! function lives in that environment and so finds `.task` there; upon the first
//! reading after resolution it becomes an ordinary variable and the task is let go.
//!
//! [`blocks`] lets the tasks go of mirai that are dropped unread.

mod blocks;

use std::ffi::c_void;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::Arc;

use extendr_ffi::{
    R_CallMethodDef, R_ClassSymbol, R_ExternalPtrAddr, R_ExternalPtrProtected, R_ExternalPtrTag,
    R_MakeExternalPtr, R_NewEnv, R_NilValue, R_RegisterCFinalizerEx, R_SetExternalPtrTag, Rboolean,
    Rf_allocVector, Rf_defineVar, Rf_getAttrib, Rf_lcons, Rf_protect, Rf_setAttrib, Rf_unprotect,
    LOGICAL, SEXP, SEXPTYPE, TYPEOF,
};
use mirai_core::checkpoint::Stored;
use mirai_core::memory::Content;
use mirai_core::task::{next_task_id, Outcome, Payload, Task};

use crate::failures::{
    argument_failure, error_value, failure_of, failure_with, reset_value, unreadable,
};
use crate::forks;
use crate::gc;
use crate::notes;
use crate::r::{self, symbols, Constant, R_MakeActiveBinding, Rf_eval, Rf_inherits, Rf_list3};
use crate::serialize::{self, Unread};

use self::blocks::{empty, Block, Slot};

pub(crate) fn routines() -> Vec<R_CallMethodDef> {
    vec![
        r::routine(c"resolved", resolved as *const (), 1),
        r::routine(c"data", data as *const (), 1),
    ]
}

symbols! {
    DATA = c"data";
    TASK = c".task";
    ID = c"id";
    FUNCTION = c"function";
    NEEDED = c"mirai_needed";
}

// SAFETY: on R's main thread.
static CLASS: Constant = Constant::new(|| unsafe { r::string("mirai") });

// SAFETY: on R's main thread; what was allocated is protected.
static UNRESOLVED: Constant = Constant::new(|| unsafe {
    let value = Rf_protect(Rf_allocVector(SEXPTYPE::LGLSXP, 1));
    *LOGICAL(value) = i32::MIN; // NA
    let class = Rf_protect(r::string("unresolvedValue"));
    Rf_setAttrib(value, R_ClassSymbol, class);
    extendr_ffi::MARK_NOT_MUTABLE(value);
    Rf_unprotect(2);
    value
});

/// The call `function(value) <body>`, whose evaluation in a mirai makes the
/// function of its active binding; formals and body are shared by all of them.
// SAFETY: on R's main thread; our namespace keeps the template, which is a closure, and so its parts.
static BINDING: Constant = Constant::new(|| unsafe {
    let template = r::our_function(c"data_binding");
    let formals = extendr_ffi::backports::get_closure_formals(template);
    let body = r::R_ClosureExpr(template);
    let rest = Rf_protect(Rf_list3(formals, body, R_NilValue));
    let call = Rf_lcons(FUNCTION.get(), rest);
    Rf_unprotect(1);
    call
});

/// Makes a mirai without a task yet, which has this slot of a block, or, without a block, one that
/// will never have a task.
unsafe fn new_mirai(block: SEXP, slot: usize) -> (SEXP, SEXP) {
    // SAFETY: on R's main thread; `block` is protected, and so is what was allocated.
    unsafe {
        let env = Rf_protect(R_NewEnv(r::NAMESPACE.get(), 0, 0));
        // Copies of it that come through serialization have the address 0, which is no slot.
        let address = std::ptr::without_provenance_mut(slot);
        let pointer = Rf_protect(R_MakeExternalPtr(address, block, env));
        Rf_defineVar(TASK.get(), pointer, env);
        Rf_setAttrib(env, R_ClassSymbol, CLASS.get());
        Rf_unprotect(2);
        (env, pointer)
    }
}

/// The slot of a mirai by its `.task`; `None` if it has been given back.
unsafe fn slot<'a>(pointer: SEXP) -> Option<&'a Slot> {
    // SAFETY: as in `Block::of`; a slot is given back with its block only.
    unsafe {
        let block = Block::of(R_ExternalPtrTag(pointer))?;
        block
            .slots
            .get(R_ExternalPtrAddr(pointer).addr().checked_sub(1)?)
    }
}

/// Gives a mirai the next number of the session. That of its task is another, because R code that
/// runs between the two (hooks, finalizers) may make mirai itself.
unsafe fn number(env: SEXP) {
    // SAFETY: on R's main thread; `env` is protected, and so is `id`.
    unsafe {
        static LAST: AtomicI32 = AtomicI32::new(0);
        let id = LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let id = Rf_protect(r::integers(&[id]));
        Rf_setAttrib(env, ID.get(), id);
        Rf_unprotect(1);
    }
}

/// Makes a mirai with all that it needs to follow a task, and returns its environment and
/// its `.task`. Everything that R can fail at happens here, before there is a task.
pub(crate) unsafe fn new_pending() -> (SEXP, SEXP) {
    // SAFETY: on R's main thread; what was allocated is protected.
    unsafe {
        let (block, slot) = Block::take_slot();
        Rf_protect(block);
        let (env, pointer) = new_mirai(block, slot);
        Rf_protect(env);
        let function = Rf_protect(Rf_eval(BINDING.get(), env));
        R_MakeActiveBinding(DATA.get(), function, env);
        number(env);
        Rf_unprotect(3);
        (env, pointer)
    }
}

unsafe fn release(pointer: SEXP) {
    // SAFETY: on R's main thread; `pointer` is a mirai's `.task` and protected.
    unsafe {
        if let Some(slot) = slot(pointer) {
            empty(slot);
        }
        // It keeps the tasks of others no longer.
        R_SetExternalPtrTag(pointer, R_NilValue);
    }
}

/// Makes the task of a mirai, to be submitted before R is called again: ids are in order then.
pub(crate) unsafe fn new_task(pointer: SEXP, payload: Payload, name: Option<&str>) -> Arc<Task> {
    // SAFETY: as of the other function.
    unsafe { attach(pointer, Task::new(next_task_id(), payload), name) }
}

/// The same, for a task that needs the values of others.
pub(crate) unsafe fn new_task_needing(
    pointer: SEXP,
    payload: Payload,
    name: Option<&str>,
    needs: Vec<Arc<Task>>,
) -> Arc<Task> {
    // SAFETY: as of the other function.
    unsafe {
        let task = Task::new(next_task_id(), payload).needing(needs);
        attach(pointer, task, name)
    }
}

/// Makes the task of a mirai one that has resolved to a value of a checkpoint.
pub(crate) unsafe fn new_stored(pointer: SEXP, stored: Stored, name: Option<&str>) {
    // SAFETY: as of the other function.
    unsafe {
        attach(pointer, Task::stored(next_task_id(), stored), name);
    }
}

unsafe fn attach(pointer: SEXP, task: Task, name: Option<&str>) -> Arc<Task> {
    // SAFETY: `pointer` is a mirai's `.task` and protected.
    unsafe {
        let number = Rf_getAttrib(R_ExternalPtrProtected(pointer), ID.get());
        let number = r::as_number(number).map_or(0, |number| number as u32);
        let task = Arc::new(task.labelled(number, name.map(Into::into)));
        if let Some(slot) = slot(pointer) {
            slot.set(Arc::into_raw(task.clone()));
        }
        task
    }
}

/// What `.task` points to.
unsafe fn held<'a>(pointer: SEXP) -> Option<&'a Task> {
    // SAFETY: a slot holds null or a task, which it keeps alive until it is emptied.
    unsafe { slot(pointer)?.get().as_ref() }
}

/// The task of a mirai, or `None` if it has been let go: the value is there. So there is for another object, which a
/// user may have put into a map. Borrowed for as long as the mirai is reachable and its value is not read.
pub(crate) unsafe fn task_of<'a>(mirai: SEXP) -> Option<&'a Task> {
    // SAFETY: on R's main thread; `mirai` is protected.
    unsafe {
        if TYPEOF(mirai) != SEXPTYPE::ENVSXP {
            return None;
        }
        let pointer = r::get_var_in_frame(TASK.get(), mirai);
        if TYPEOF(pointer) != SEXPTYPE::EXTPTRSXP {
            return None;
        }
        held(pointer)
    }
}

/// The task of a mirai of which another task needs the value; `None` if the value has been read. The task will hear when
/// the mirai is collected: a block that several mirai share hears of the last one only.
pub(crate) unsafe fn needed_task(mirai: SEXP) -> Option<Arc<Task>> {
    // SAFETY: on R's main thread; `mirai` is a mirai and protected. What `held` returns is counted before R is called.
    unsafe {
        let pointer = r::get_var_in_frame(TASK.get(), mirai);
        if TYPEOF(pointer) != SEXPTYPE::EXTPTRSXP || held(pointer).is_none() {
            return None;
        }
        if Rf_getAttrib(pointer, NEEDED.get()) == R_NilValue {
            // May run finalizers, and these may read the mirai.
            Rf_setAttrib(pointer, NEEDED.get(), Rf_protect(r::Rf_ScalarLogical(1)));
            R_RegisterCFinalizerEx(pointer, Some(collected), Rboolean::FALSE);
            Rf_unprotect(1);
        }
        shared_task(mirai)
    }
}

/// The task of a mirai, to be kept. R is called for reading only.
pub(crate) unsafe fn shared_task(mirai: SEXP) -> Option<Arc<Task>> {
    // SAFETY: on R's main thread; `mirai` is a mirai and protected. A slot holds a pointer from `Arc::into_raw`.
    unsafe {
        let task = std::ptr::from_ref(task_of(mirai)?);
        Arc::increment_strong_count(task);
        Some(Arc::from_raw(task))
    }
}

/// A mirai whose value others have needed is collected: its task need not wait for others of the same block. The block may
/// be gone already.
unsafe extern "C" fn collected(pointer: SEXP) {
    // SAFETY: R calls it with a mirai's `.task`.
    unsafe {
        if !forks::is_forked() {
            if let Some(slot) = slot(pointer) {
                empty(slot);
            }
        }
    }
}

pub(crate) unsafe fn is_mirai(x: SEXP) -> bool {
    // SAFETY: on R's main thread; `x` is protected.
    unsafe {
        TYPEOF(x) == SEXPTYPE::ENVSXP
        // As one that is made here has it, which is quick to see.
        && (Rf_getAttrib(x, R_ClassSymbol) == CLASS.get()
            || Rf_inherits(x, c"mirai".as_ptr()) == Rboolean::TRUE)
    }
}

/// `.Call(resolved, value)`: a mirai that has this value from the beginning.
unsafe extern "C-unwind" fn resolved(value: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument; `env` is protected.
    unsafe {
        let (env, _) = new_mirai(R_NilValue, 0);
        Rf_protect(env);
        Rf_defineVar(DATA.get(), value, env);
        number(env);
        Rf_unprotect(1);
        env
    }
}

/// `.Call(data, .task)`: the value, or an unresolved value.
unsafe extern "C-unwind" fn data(pointer: SEXP) -> SEXP {
    // SAFETY: R calls it on its main thread and protects the argument.
    unsafe {
        if TYPEOF(pointer) != SEXPTYPE::EXTPTRSXP {
            return error_value(7);
        }
        match held(pointer) {
            Some(task) if task.is_resolved() => settle(pointer),
            Some(_) => UNRESOLVED.get(),
            // A copy that came through serialization has a value only if it had been
            // read before; a binding that is still active would lead back to here.
            None => error_value(7),
        }
    }
}

/// Makes the value of a resolved task the mirai's ordinary `data`.
unsafe fn settle(pointer: SEXP) -> SEXP {
    // SAFETY: on R's main thread; `env` is protected. The task has been counted once more, for `drop_task`, which
    // R calls in any case.
    unsafe {
        let env = Rf_protect(R_ExternalPtrProtected(pointer));
        let Some(task) = held(pointer).map(std::ptr::from_ref) else {
            return error_value(7);
        };
        // Before R may write to its memory.
        (*task).make_ready_to_pass();
        // Reading may run code of the user's (hooks, finalizers), which may read the same
        // mirai; it may also leave by a long jump.
        Arc::increment_strong_count(task);
        let held = task.cast_mut().cast();
        let value = r::R_ExecWithCleanup(Some(read_outcome), held, Some(drop_task), held);
        Rf_protect(value);
        // The user's code may have read it, too.
        if let Some(task) = self::held(pointer) {
            notes::keep(env, task);
        }
        r::R_removeVarFromFrame(DATA.get(), env);
        Rf_defineVar(DATA.get(), value, env);
        release(pointer);
        // It may have let down tasks that run on.
        if gc::worth_collecting_let_down() {
            gc::collect();
        }
        Rf_unprotect(2);
        value
    }
}

unsafe extern "C" fn read_outcome(task: *mut c_void) -> SEXP {
    // SAFETY: `settle` passes a task that it keeps alive.
    unsafe { outcome_of(&*task.cast::<Task>()) }
}

/// As an R object.
unsafe fn outcome_of(task: &Task) -> SEXP {
    // SAFETY: on R's main thread; what was allocated is protected. A long jump leaves nothing that is owned here.
    unsafe {
        match task.outcome() {
            Some(Outcome::Value(content) | Outcome::Error(content)) => value(content),
            Some(Outcome::Stored(stored)) => match stored.content() {
                Ok(content) => value(content),
                Err(error) => {
                    let text = format!("the value cannot be read from the checkpoint: {error}");
                    drop(error);
                    let string = r::string(&text);
                    drop(text);
                    failure_with(string)
                }
            },
            Some(Outcome::TimedOut) => error_value(5),
            Some(Outcome::Closed) => error_value(7),
            Some(Outcome::Reset) => reset_value(task),
            Some(Outcome::Argument(cause)) => {
                let cause = Rf_protect(outcome_of(cause.task()));
                let value = argument_failure(cause);
                Rf_unprotect(1);
                value
            }
            Some(Outcome::Canceled) | None => error_value(20),
        }
    }
}

/// The value that a daemon has sent; an error value if it cannot be read. A long jump leaves this only
/// for an interrupt, and then the value can be read again.
unsafe fn value(content: &Content) -> SEXP {
    // SAFETY: on R's main thread; `reading` outlives the call, in which long jumps end but for interrupts.
    unsafe {
        let mut reading = Reading {
            content,
            unread: None,
        };
        match serialize::read_plain(content) {
            Some(Ok(value)) => return value,
            Some(Err(unread)) => return failure_of(unread),
            // Being ready for R's errors takes longer than reading a small value.
            None => {}
        }
        let data = std::ptr::from_mut(&mut reading).cast();
        let value = r::R_tryCatchError(Some(read_content), data, Some(unreadable), data);
        match reading.unread {
            None => value,
            Some(unread) => failure_of(unread),
        }
    }
}

struct Reading<'a> {
    content: &'a Content,
    unread: Option<Unread>,
}

unsafe extern "C" fn read_content(reading: *mut c_void) -> SEXP {
    // SAFETY: `value` passes its `reading`, which nobody else uses meanwhile.
    unsafe {
        let reading = &mut *reading.cast::<Reading<'_>>();
        serialize::read(reading.content).unwrap_or_else(|unread| {
            reading.unread = Some(unread);
            R_NilValue
        })
    }
}

unsafe extern "C" fn drop_task(task: *mut c_void) {
    // SAFETY: `settle` passes a task that it has counted for this.
    unsafe {
        drop(Arc::from_raw(task.cast::<Task>().cast_const()));
    }
}

/// The value of a mirai without a task: it was read before, or the mirai is a copy that came through serialization. An
/// object that is no mirai is its own value.
pub(crate) unsafe fn read_value(mirai: SEXP) -> SEXP {
    // SAFETY: on R's main thread; `mirai` is protected.
    unsafe {
        if !is_mirai(mirai) {
            return mirai;
        }
        // A binding that is still active finds no task.
        r::get_var_in_frame(DATA.get(), mirai)
    }
}

/// The value of a mirai that has resolved, or of an object that is no mirai.
pub(crate) unsafe fn value_of(mirai: SEXP) -> SEXP {
    // SAFETY: on R's main thread; `mirai` is protected.
    unsafe {
        if task_of(mirai).is_some() {
            settle(r::get_var_in_frame(TASK.get(), mirai))
        } else {
            read_value(mirai)
        }
    }
}
