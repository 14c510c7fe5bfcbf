//! Putting a daemon back to how it was before a task.
//!
//! A [`Snapshot`] remembers the global environment, the search path and the
//! options by the addresses of their parts. After a task these are compared,
//! which takes well under a microsecond, and only a difference is acted upon.

use std::collections::HashSet;
use std::ffi::c_int;

use extendr_ffi::{
    R_BaseEnv, R_GlobalEnv, R_NilValue, R_PreserveObject, R_ReleaseObject, Rboolean,
    Rf_allocVector, Rf_defineVar, Rf_install, Rf_lang1, Rf_lcons, Rf_protect, Rf_unprotect,
    Rf_xlength, CAR, CDR, INTEGER, PRINTNAME, SET_STRING_ELT, SET_VECTOR_ELT, SEXP, SEXPTYPE,
    STRING_ELT, TAG, TYPEOF, VECTOR_ELT,
};
use mirai_core::protocol::Stream;

use crate::mrg32k3a;
use crate::r::{
    self, R_gc, R_lsInternal3, Rf_asLogical, Rf_eval, Rf_installChar, Rf_lang2, Rf_lang4, Variable,
};
use crate::streams::{as_stream, random_seed};

/// What to restore: the `cleanup` argument of `daemon()`, as a bit mask.
pub(crate) const GLOBALS: c_int = 1;
pub(crate) const PACKAGES: c_int = 2;
pub(crate) const OPTIONS: c_int = 4;
pub(crate) const GC: c_int = 8;

r::symbols! {
    SEED = c".Random.seed";
    OPTIONS_LIST = c".Options";
}

/// See the [module documentation](self).
pub(crate) struct Snapshot {
    /// List of what must stay alive: `.Random.seed` first, then global values and the search path.
    kept: SEXP,
    /// Names in the global environment but for `.Random.seed`, in R's order, and the same as a set.
    /// CHARSXPs are unique, so addresses will do.
    names: Vec<SEXP>,
    known: HashSet<SEXP>,
    /// What they are, and whether their bindings were locked.
    values: Vec<Variable>,
    locked: Vec<bool>,
    search: Vec<SEXP>,
    /// Where these begin in `kept`.
    search_at: isize,
    options: Options,
    /// The options are as they were, and no function of R has been called since.
    options_are_checked: bool,
    /// The daemon's stream of random numbers. `None` if it has none, or [`everywhere()`](Snapshot::following) has chosen
    /// others.
    stream: Option<Place>,
}

/// Where the next task begins in a stream.
#[derive(Clone, Copy)]
struct Place {
    /// Where the substream begins.
    substream: Stream,
    /// What `.Random.seed` is.
    now: Stream,
}

/// Whether a task has called `set.seed()` shows by stepping through so many states of its stream, 10 ns for each, without
/// finding `.Random.seed`. A task that has drawn more numbers than this is taken for one that has.
const MOST_BY_A_TASK: u32 = 1 << 12;
/// The same of the code of an `everywhere()`, which seldom runs.
const MOST_BY_A_SETUP: u32 = 1 << 22;

impl Place {
    /// The place where `.Random.seed` is `now`, if drawing up to `most` numbers leads there from here. `None` if it does not:
    /// R code has called `set.seed()`, say.
    fn after(self, now: Option<Stream>, most: u32) -> Option<Place> {
        let now = now.filter(|now| mrg32k3a::is_soon_after(*now, self.now, most));
        now.map(|now| Place { now, ..self })
    }

    fn next_substream(self) -> Place {
        let next = mrg32k3a::next_substream(self.substream);
        Place {
            substream: next,
            now: next,
        }
    }
}

/// R's options, and which packages were loaded when these were in force.
struct Options {
    entries: Vec<Entry>,
    /// List of what must stay alive: the names of the loaded namespaces, then the options' cells and values.
    kept: SEXP,
}

/// An option: its cell of R's list of options, which names it for good, and its value.
#[derive(PartialEq)]
struct Entry {
    cell: SEXP,
    value: SEXP,
}

impl Snapshot {
    /// # Safety
    /// On R's main thread, within a top-level context.
    pub(crate) unsafe fn take() -> Snapshot {
        // SAFETY: on R's main thread. `ls` is protected until `kept` has it; the values are those of variables,
        // which nobody changes meanwhile.
        unsafe {
            let options = Options::current();
            let ls = Rf_protect(R_lsInternal3(R_GlobalEnv, Rboolean::TRUE, Rboolean::FALSE));
            let n = Rf_xlength(ls);
            let seed = PRINTNAME(SEED.get());
            let names = (0..n).map(|i| STRING_ELT(ls, i));
            let names: Vec<SEXP> = names.filter(|name| *name != seed).collect();
            let values: Vec<Variable> = names
                .iter()
                .map(|name| Variable::of(Rf_installChar(*name), R_GlobalEnv))
                .collect();
            let locked = names
                .iter()
                .zip(&values)
                .map(|(name, value)| is_locked(Rf_installChar(*name), *value))
                .collect();
            let search = search_path();
            let all = values.iter().flat_map(|value| value.parts());
            let all = all.chain(search.iter().copied());
            let count = 2 * values.len() + search.len();
            let kept = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, count as isize + 2));
            let seed = Variable::of(SEED.get(), R_GlobalEnv);
            if let Variable::Value(seed) = seed {
                SET_VECTOR_ELT(kept, 0, seed);
            }
            SET_VECTOR_ELT(kept, 1, ls);
            for (i, x) in all.enumerate() {
                SET_VECTOR_ELT(kept, i as isize + 2, x);
            }
            R_PreserveObject(kept);
            Rf_unprotect(2);
            Snapshot {
                kept,
                known: names.iter().copied().collect(),
                names,
                values,
                locked,
                search_at: count as isize + 2 - search.len() as isize,
                search,
                options,
                options_are_checked: false,
                stream: stream_of(VECTOR_ELT(kept, 0)).map(|now| Place {
                    substream: now,
                    now,
                }),
            }
        }
    }

    /// The same after the code of an `everywhere()`, of which all stays. If that has chosen a seed or a generator, so have
    /// all tasks that follow.
    pub(crate) fn following(mut self, before: &Snapshot) -> Snapshot {
        // SAFETY: both lists are preserved and have an element.
        let same = unsafe { VECTOR_ELT(self.kept, 0) == VECTOR_ELT(before.kept, 0) };
        let now = self.stream.map(|place| place.now);
        self.stream = before.stream.and_then(|place| {
            if same {
                Some(place)
            } else {
                place.after(now, MOST_BY_A_SETUP)
            }
        });
        self
    }

    /// A task has ended: anything may have changed.
    pub(crate) fn task_has_ended(&mut self) {
        self.options_are_checked = false;
    }

    /// Undoes a part of what has changed since.
    ///
    /// # Safety
    /// On R's main thread, within a top-level context: may leave by a long jump.
    pub(crate) unsafe fn restore(&mut self, what: c_int) {
        // SAFETY: as this function demands.
        unsafe {
            match what {
                PACKAGES => self.restore_search(),
                OPTIONS => self.restore_options(),
                GLOBALS => self.restore_globals(),
                GC => R_gc(),
                _ => {}
            }
        }
    }

    /// The daemon's stream goes on from task to task. If a task has called `set.seed()` or `RNGkind()`, the next task begins
    /// at the next substream of the daemon's own stream. Otherwise, after a task with `set.seed(1)` on each of several
    /// daemons, later tasks on all of these would draw the same numbers. Returns whether there is a `.Random.seed`.
    unsafe fn restore_stream(&mut self) -> bool {
        // SAFETY: on R's main thread. `seed` is protected until `kept` has it.
        unsafe {
            let now = Variable::of(SEED.get(), R_GlobalEnv);
            let Some(place) = self.stream else {
                return !matches!(now, Variable::Absent);
            };
            if is_locked(SEED.get(), now) {
                r::R_unLockBinding(SEED.get(), R_GlobalEnv);
            }
            match now {
                Variable::Value(seed) if seed == VECTOR_ELT(self.kept, 0) => return true,
                Variable::Value(seed) => {
                    if let Some(place) = place.after(stream_of(seed), MOST_BY_A_TASK) {
                        SET_VECTOR_ELT(self.kept, 0, seed);
                        self.stream = Some(place);
                        return true;
                    }
                }
                Variable::Absent | Variable::Active
                    if r::R_EnvironmentIsLocked(R_GlobalEnv) == Rboolean::TRUE =>
                {
                    complain();
                    return matches!(now, Variable::Active);
                }
                Variable::Active => r::R_removeVarFromFrame(SEED.get(), R_GlobalEnv),
                _ => {}
            }
            let next = place.next_substream();
            let seed = Rf_protect(r::integers(&random_seed(next.now)));
            Rf_defineVar(SEED.get(), seed, R_GlobalEnv);
            SET_VECTOR_ELT(self.kept, 0, seed);
            self.stream = Some(next);
            Rf_unprotect(1);
            true
        }
    }

    unsafe fn restore_globals(&mut self) {
        // SAFETY: on R's main thread. `ls` is protected; the objects of the snapshot are in `kept`, which is
        // preserved.
        unsafe {
            let has_seed = self.restore_stream();
            if self.has_same_globals(has_seed) {
                return;
            }
            // No binding can be added to or removed from it then, and nothing can unlock it.
            let frozen = r::R_EnvironmentIsLocked(R_GlobalEnv) == Rboolean::TRUE;
            let mut incomplete = false;
            let ls = Rf_protect(R_lsInternal3(R_GlobalEnv, Rboolean::TRUE, Rboolean::FALSE));
            for i in 0..Rf_xlength(ls) {
                let name = STRING_ELT(ls, i);
                if !self.known.contains(&name) {
                    let symbol = Rf_installChar(name);
                    if symbol == SEED.get() {
                        continue;
                    }
                    if frozen {
                        incomplete = true;
                    } else {
                        r::R_removeVarFromFrame(symbol, R_GlobalEnv);
                    }
                }
            }
            let before = self.names.iter().zip(&self.values).zip(&self.locked);
            for ((name, value), locked) in before {
                let symbol = Rf_installChar(*name);
                if matches!(value, Variable::Absent | Variable::Active) {
                    continue;
                }
                let now = Variable::of(symbol, R_GlobalEnv);
                if now.is_still(*value) && is_locked(symbol, now) == *locked {
                    continue;
                }
                match now {
                    Variable::Absent | Variable::Active if frozen => {
                        incomplete = true;
                        continue;
                    }
                    Variable::Absent => {}
                    // To assign would call its function.
                    Variable::Active => r::R_removeVarFromFrame(symbol, R_GlobalEnv),
                    _ if is_locked(symbol, now) => r::R_unLockBinding(symbol, R_GlobalEnv),
                    _ => {}
                }
                value.make(symbol, R_GlobalEnv);
                if *locked {
                    r::R_LockBinding(symbol, R_GlobalEnv);
                }
            }
            Rf_unprotect(1);
            if incomplete {
                complain();
            }
        }
    }

    /// Whether the global environment has no variables but those of the snapshot, with the same values, and `.Random.seed` if
    /// `has_seed`.
    unsafe fn has_same_globals(&self, has_seed: bool) -> bool {
        // SAFETY: on R's main thread; the objects of the snapshot are in `kept`, which is preserved.
        unsafe {
            if Rf_xlength(R_GlobalEnv) != self.names.len() as isize + isize::from(has_seed) {
                return false;
            }
            let mut before = self.names.iter().zip(&self.values).zip(&self.locked);
            before.all(|((name, value), locked)| {
                let symbol = Rf_installChar(*name);
                let now = Variable::of(symbol, R_GlobalEnv);
                now.is_still(*value) && is_locked(symbol, now) == *locked
            })
        }
    }

    unsafe fn has_same_search(&self) -> bool {
        // SAFETY: on R's main thread; each environment up to the base one has a parent.
        unsafe {
            let mut env = r::get_parent_env(R_GlobalEnv);
            for known in &self.search {
                if env != *known {
                    return false;
                }
                env = r::get_parent_env(env);
            }
            env == R_BaseEnv || env == R_NilValue
        }
    }

    unsafe fn restore_search(&mut self) {
        // SAFETY: on R's main thread. Attached environments are kept by R, those of the snapshot by `kept`, of which
        // they are the last elements; `known` and `call` are protected.
        unsafe {
            if self.has_same_search() {
                return;
            }
            self.options_are_checked = false;
            let n = self.search.len() as isize;
            let known = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n));
            for (i, env) in self.search.iter().enumerate() {
                SET_VECTOR_ELT(known, i as _, *env);
            }
            let call = Rf_protect(Rf_lang2(Rf_install(c"restore_search".as_ptr()), known));
            // What was attached anew is another environment.
            let now = Rf_eval(call, r::NAMESPACE.get());
            if TYPEOF(now) == SEXPTYPE::VECSXP && Rf_xlength(now) <= n {
                let first = self.search_at;
                self.search.clear();
                for i in 0..Rf_xlength(now) {
                    SET_VECTOR_ELT(self.kept, first + i, VECTOR_ELT(now, i));
                    self.search.push(VECTOR_ELT(now, i));
                }
            }
            Rf_unprotect(2);
        }
    }

    unsafe fn restore_options(&mut self) {
        // SAFETY: on R's main thread. R keeps the pairlist of options, of which each cell is valid up to
        // `R_NilValue`.
        unsafe {
            if self.options_are_checked {
                return;
            }
            let mut cell = current_options();
            let mut saved = self.options.entries.iter();
            while cell != R_NilValue {
                let value = CAR(cell);
                if saved.next() != Some(&Entry { cell, value }) {
                    return self.reset_options();
                }
                cell = CDR(cell);
            }
            if saved.next().is_some() {
                return self.reset_options();
            }
            self.options_are_checked = true;
        }
    }

    /// Something differs: R sets what it should be. It lets packages that the task has loaded keep options of their own,
    /// which become part of this snapshot.
    unsafe fn reset_options(&mut self) {
        // SAFETY: on R's main thread. What was allocated is protected; values of the snapshot are in `kept`, which
        // is preserved.
        unsafe {
            let n = self.options.entries.len() as isize;
            let names = Rf_protect(Rf_allocVector(SEXPTYPE::STRSXP, n));
            let values = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n));
            for (i, Entry { cell, value }) in self.options.entries.iter().enumerate() {
                SET_STRING_ELT(names, i as _, PRINTNAME(TAG(*cell)));
                SET_VECTOR_ELT(values, i as _, *value);
            }
            let call = Rf_protect(Rf_lang4(
                Rf_install(c"reset_options".as_ptr()),
                names,
                values,
                VECTOR_ELT(self.options.kept, 0),
            ));
            let has_more = Rf_eval(call, r::NAMESPACE.get());
            if Rf_asLogical(has_more) == 1 {
                self.options = Options::current();
            }
            Rf_unprotect(3);
        }
    }
}

impl Options {
    unsafe fn current() -> Options {
        // SAFETY: on R's main thread. What was allocated is protected until `kept` has it; R keeps the pairlist of
        // options.
        unsafe {
            // First, while there is nothing of Rust's that a long jump would leave behind.
            let call = Rf_protect(Rf_lang1(Rf_install(c"loadedNamespaces".as_ptr())));
            let namespaces = Rf_protect(Rf_eval(call, R_BaseEnv));
            let mut entries = Vec::new();
            let mut cell = current_options();
            while cell != R_NilValue {
                let value = CAR(cell);
                entries.push(Entry { cell, value });
                cell = CDR(cell);
            }
            let size = 2 * entries.len() as isize + 1;
            let kept = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, size));
            SET_VECTOR_ELT(kept, 0, namespaces);
            let parts = entries.iter().flat_map(|entry| [entry.cell, entry.value]);
            for (i, part) in parts.enumerate() {
                SET_VECTOR_ELT(kept, i as isize + 1, part);
            }
            R_PreserveObject(kept);
            Rf_unprotect(3);
            Options { entries, kept }
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: preserved in `current`.
        unsafe { R_ReleaseObject(self.kept) };
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // SAFETY: preserved in `take`.
        unsafe { R_ReleaseObject(self.kept) };
    }
}

/// The steps of a clean-up, in order, each to be tried although one before it has failed.
///
/// Options first, because they could make errors of warnings; again after packages, of which hooks
/// may have set some. Globals after everything that calls R code, which may leave something.
pub(crate) const STEPS: [c_int; 5] = [OPTIONS, PACKAGES, OPTIONS, GLOBALS, GC];

/// Says that a locked global environment cannot be cleaned.
unsafe fn complain() {
    // SAFETY: on R's main thread; the call is protected.
    unsafe {
        let call = Rf_lcons(Rf_install(c"warn_of_locked_globals".as_ptr()), R_NilValue);
        Rf_protect(call);
        Rf_eval(call, r::NAMESPACE.get());
        Rf_unprotect(1);
    }
}

/// Whether the binding of a variable that is this is locked.
unsafe fn is_locked(symbol: SEXP, variable: Variable) -> bool {
    // SAFETY: on R's main thread; `symbol` is a symbol that is bound there, as R demands.
    unsafe {
        !matches!(variable, Variable::Absent)
            && r::R_BindingIsLocked(symbol, R_GlobalEnv) == Rboolean::TRUE
    }
}

/// The stream that a value of `.Random.seed` is.
unsafe fn stream_of(seed: SEXP) -> Option<Stream> {
    // SAFETY: on R's main thread; `seed` is protected and has as many integers as it says.
    unsafe {
        if TYPEOF(seed) != SEXPTYPE::INTSXP || Rf_xlength(seed) == 0 {
            return None;
        }
        as_stream(std::slice::from_raw_parts(
            INTEGER(seed),
            Rf_xlength(seed) as usize,
        ))
    }
}

/// Attached environments between the global and the base one.
unsafe fn search_path() -> Vec<SEXP> {
    // SAFETY: on R's main thread; each environment up to the base one has a parent.
    unsafe {
        let mut out = Vec::new();
        let mut env = r::get_parent_env(R_GlobalEnv);
        while env != R_BaseEnv && env != R_NilValue {
            out.push(env);
            env = r::get_parent_env(env);
        }
        out
    }
}

unsafe fn current_options() -> SEXP {
    // SAFETY: on R's main thread.
    unsafe { r::get_var_in_frame(OPTIONS_LIST.get(), R_BaseEnv) }
}
