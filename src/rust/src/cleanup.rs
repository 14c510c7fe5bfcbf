//! Putting a daemon back to how it was before a task.
//!
//! A [`Snapshot`] remembers the global environment, the search path and the
//! options by the addresses of their parts. After a task these are compared,
//! which takes well under a microsecond, and only a difference is acted upon.

use std::collections::HashSet;
use std::ffi::c_int;

use extendr_ffi::{
    R_BaseEnv, R_GlobalEnv, R_NilValue, R_PreserveObject, R_ReleaseObject, Rboolean,
    Rf_allocVector, Rf_defineVar, Rf_install, Rf_protect, Rf_unprotect, Rf_xlength, CAR, CDR,
    PRINTNAME, SET_STRING_ELT, SET_VECTOR_ELT, SEXP, SEXPTYPE, STRING_ELT, TAG,
};

use crate::r::{self, R_gc, R_lsInternal3, Rf_eval, Rf_installChar, Rf_lang2, Rf_lang3};

/// What to restore: the `cleanup` argument of `daemon()`, as a bit mask.
pub const GLOBALS: c_int = 1;
pub const PACKAGES: c_int = 2;
pub const OPTIONS: c_int = 4;
pub const GC: c_int = 8;

r::symbols! {
    SEED = c".Random.seed";
    OPTIONS_LIST = c".Options";
}

/// See the [module documentation](self).
pub struct Snapshot {
    /// List of what must stay alive: global values, options, search path.
    kept: SEXP,
    /// Names in the global environment, in R's order, and the same as a set.
    /// CHARSXPs are unique, so addresses will do.
    names: Vec<SEXP>,
    known: HashSet<SEXP>,
    /// Values, null for active bindings.
    values: Vec<SEXP>,
    search: Vec<SEXP>,
    options: Vec<(SEXP, SEXP)>,
}

impl Snapshot {
    /// # Safety
    /// On R's main thread, within a top-level context.
    pub unsafe fn take() -> Snapshot {
        let ls = Rf_protect(R_lsInternal3(R_GlobalEnv, Rboolean::TRUE, Rboolean::FALSE));
        let n = Rf_xlength(ls);
        let names: Vec<SEXP> = (0..n).map(|i| STRING_ELT(ls, i)).collect();
        let values: Vec<SEXP> = names
            .iter()
            .map(|name| value_of(Rf_installChar(*name)))
            .collect();
        let search = search_path();
        let options = options();
        let all = values.iter().chain(&search).copied();
        let all = all.chain(options.iter().map(|(_, value)| *value));
        let count = values.len() + search.len() + options.len();
        let kept = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, count as isize + 1));
        SET_VECTOR_ELT(kept, 0, ls);
        for (i, x) in all.enumerate().filter(|(_, x)| !x.is_null()) {
            SET_VECTOR_ELT(kept, i as isize + 1, x);
        }
        R_PreserveObject(kept);
        Rf_unprotect(2);
        Snapshot {
            kept,
            known: names.iter().copied().collect(),
            names,
            values,
            search,
            options,
        }
    }

    /// Undoes what has changed since.
    ///
    /// # Safety
    /// On R's main thread, within a top-level context: may leave by a long jump.
    pub unsafe fn restore(&self, what: c_int) {
        if what & PACKAGES != 0 {
            self.restore_search();
        }
        if what & OPTIONS != 0 {
            self.restore_options();
        }
        // Last, because the others may have called R code that leaves something.
        if what & GLOBALS != 0 {
            self.restore_globals();
        }
        if what & GC != 0 {
            R_gc();
        }
    }

    unsafe fn restore_globals(&self) {
        let ls = Rf_protect(R_lsInternal3(R_GlobalEnv, Rboolean::TRUE, Rboolean::FALSE));
        for i in 0..Rf_xlength(ls) {
            let name = STRING_ELT(ls, i);
            if !self.known.contains(&name) {
                let symbol = Rf_installChar(name);
                if symbol != SEED.get() {
                    r::R_removeVarFromFrame(symbol, R_GlobalEnv);
                }
            }
        }
        for (name, value) in self.names.iter().zip(&self.values) {
            let symbol = Rf_installChar(*name);
            if !value.is_null() && symbol != SEED.get() && value_of(symbol) != *value {
                Rf_defineVar(symbol, *value, R_GlobalEnv);
            }
        }
        Rf_unprotect(1);
    }

    unsafe fn restore_search(&self) {
        let mut env = r::get_parent_env(R_GlobalEnv);
        let mut same = self.search.iter();
        while env != R_BaseEnv && env != R_NilValue {
            if same.next() != Some(&env) {
                let known = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, self.search.len() as _));
                for (i, env) in self.search.iter().enumerate() {
                    SET_VECTOR_ELT(known, i as _, *env);
                }
                let call = Rf_protect(Rf_lang2(Rf_install(c"detach_others".as_ptr()), known));
                Rf_eval(call, r::NAMESPACE.get());
                Rf_unprotect(2);
                return;
            }
            env = r::get_parent_env(env);
        }
    }

    unsafe fn restore_options(&self) {
        let mut cell = current_options();
        let mut saved = self.options.iter();
        while cell != R_NilValue {
            if saved.next() != Some(&(TAG(cell), CAR(cell))) {
                return self.reset_options();
            }
            cell = CDR(cell);
        }
        if saved.next().is_some() {
            self.reset_options();
        }
    }

    /// Something differs: R shall set what it should be.
    unsafe fn reset_options(&self) {
        let n = self.options.len() as isize;
        let names = Rf_protect(Rf_allocVector(SEXPTYPE::STRSXP, n));
        let values = Rf_protect(Rf_allocVector(SEXPTYPE::VECSXP, n));
        for (i, (tag, value)) in self.options.iter().enumerate() {
            SET_STRING_ELT(names, i as _, PRINTNAME(*tag));
            SET_VECTOR_ELT(values, i as _, *value);
        }
        let call = Rf_protect(Rf_lang3(
            Rf_install(c"reset_options".as_ptr()),
            names,
            values,
        ));
        Rf_eval(call, r::NAMESPACE.get());
        Rf_unprotect(3);
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // SAFETY: preserved in `take`.
        unsafe { R_ReleaseObject(self.kept) };
    }
}

/// The value of a global variable; null if it is an active binding or not there.
unsafe fn value_of(symbol: SEXP) -> SEXP {
    if r::R_existsVarInFrame(R_GlobalEnv, symbol) == Rboolean::FALSE
        || r::R_BindingIsActive(symbol, R_GlobalEnv) == Rboolean::TRUE
    {
        return std::ptr::null_mut();
    }
    let value = r::get_var_in_frame(symbol, R_GlobalEnv);
    if value == r::R_UnboundValue {
        std::ptr::null_mut()
    } else {
        value
    }
}

/// Attached environments between the global and the base one.
unsafe fn search_path() -> Vec<SEXP> {
    let mut out = Vec::new();
    let mut env = r::get_parent_env(R_GlobalEnv);
    while env != R_BaseEnv && env != R_NilValue {
        out.push(env);
        env = r::get_parent_env(env);
    }
    out
}

unsafe fn current_options() -> SEXP {
    r::get_var_in_frame(OPTIONS_LIST.get(), R_BaseEnv)
}

unsafe fn options() -> Vec<(SEXP, SEXP)> {
    let mut out = Vec::new();
    let mut cell = current_options();
    while cell != R_NilValue {
        out.push((TAG(cell), CAR(cell)));
        cell = CDR(cell);
    }
    out
}
