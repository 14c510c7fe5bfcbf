//! What R's versions have different words for: each function here does the same on all of them.
//!
//! A newer R declares entry points of an older one to be none of its API (`tools:::nonAPI` lists
//! them), and has others in their place, which the older one does not have. `build.rs` sets
//! `cfg(r_4_x)` for all R from 4.x on. Two things only R 4.5 has no word for: the parts of a
//! promise, so that R has to serialize them there, and the text of R's last error, which R code
//! tells there.

#![allow(unused_imports)] // each version uses some of them

use std::ffi::{c_char, c_int, c_void, CStr};

use extendr_ffi::{
    R_BaseEnv, R_MissingArg, R_NilValue, Rboolean, Rf_cons, Rf_defineVar, Rf_findFun, Rf_install,
    Rf_lcons, Rf_protect, Rf_setAttrib, Rf_unprotect, CAR, CDR, PRINTNAME, R_CHAR, SETCDR, SET_TAG,
    SEXP, SEXPTYPE, STRING_ELT, TAG, TYPEOF,
};

use super::{Constant, Rf_eval, Rf_list3, NAMESPACE};
#[cfg(not(r_4_6))]
use super::{Rf_ScalarString, Rf_list4};

#[allow(improper_ctypes)] // as in r.rs
extern "C" {
    #[cfg(not(r_4_6))]
    fn ATTRIB(x: SEXP) -> SEXP;
    #[cfg(not(r_4_6))]
    fn SET_ATTRIB(x: SEXP, attributes: SEXP);
    #[cfg(not(r_4_6))]
    fn SET_OBJECT(x: SEXP, flag: c_int);
    #[cfg(r_4_5)]
    fn ANY_ATTRIB(x: SEXP) -> c_int;
    #[cfg(r_4_6)]
    fn R_mapAttrib(
        x: SEXP,
        f: Option<unsafe extern "C" fn(SEXP, SEXP, *mut c_void) -> SEXP>,
        data: *mut c_void,
    ) -> SEXP;

    #[cfg(not(r_4_6))]
    fn Rf_findVarInFrame(env: SEXP, symbol: SEXP) -> SEXP;
    // extendr-ffi has it up to R 4.4.
    #[cfg(not(r_4_6))]
    static R_UnboundValue: SEXP;
    #[cfg(not(r_4_6))]
    fn R_existsVarInFrame(env: SEXP, symbol: SEXP) -> Rboolean;
    #[cfg(not(r_4_6))]
    fn R_BindingIsActive(symbol: SEXP, env: SEXP) -> Rboolean;
    #[cfg(r_4_6)]
    fn R_getVarEx(symbol: SEXP, env: SEXP, inherits: Rboolean, default: SEXP) -> SEXP;
    #[cfg(r_4_6)]
    fn R_GetBindingType(symbol: SEXP, env: SEXP) -> c_int;
    #[cfg(r_4_6)]
    fn R_DelayedBindingExpression(symbol: SEXP, env: SEXP) -> SEXP;
    #[cfg(r_4_6)]
    fn R_DelayedBindingEnvironment(symbol: SEXP, env: SEXP) -> SEXP;
    #[cfg(r_4_6)]
    fn R_ForcedBindingExpression(symbol: SEXP, env: SEXP) -> SEXP;
    #[cfg(r_4_6)]
    fn R_MakeDelayedBinding(symbol: SEXP, expr: SEXP, eval_env: SEXP, env: SEXP);
    #[cfg(not(r_4_5))]
    fn PRENV(promise: SEXP) -> SEXP;
    #[cfg(not(r_4_5))]
    fn PRVALUE(promise: SEXP) -> SEXP;
    #[cfg(not(r_4_5))]
    fn R_PromiseExpr(promise: SEXP) -> SEXP;

    #[cfg(r_4_5)]
    fn R_mkClosure(formals: SEXP, body: SEXP, env: SEXP) -> SEXP;

    #[cfg(not(r_4_6))]
    static R_NamespaceRegistry: SEXP;
    #[cfg(r_4_6)]
    fn R_getRegisteredNamespace(name: *const c_char) -> SEXP;

    #[cfg(any(not(r_4_5), r_4_6))]
    fn R_curErrorBuf() -> *const c_char;
}

/// The type of S4 objects that are of no other type.
#[cfg(r_4_4)]
pub(crate) const S4SXP: SEXPTYPE = SEXPTYPE::OBJSXP;
#[cfg(not(r_4_4))]
pub(crate) const S4SXP: SEXPTYPE = SEXPTYPE::S4SXP;

pub(crate) unsafe fn has_attributes(x: SEXP) -> bool {
    // SAFETY: on R's main thread; `x` is any object.
    unsafe {
        #[cfg(r_4_5)]
        return ANY_ATTRIB(x) != 0;
        #[cfg(not(r_4_5))]
        return ATTRIB(x) != R_NilValue;
    }
}

/// Calls `f` with the name and the value of each attribute, as it is stored, until it returns
/// false. Whether it never did.
pub(crate) unsafe fn all_attributes<F: FnMut(SEXP, SEXP) -> bool>(x: SEXP, mut f: F) -> bool {
    // SAFETY: on R's main thread; `x` keeps its attributes. R passes `call` the closure, which nobody else uses
    // meanwhile.
    unsafe {
        #[cfg(r_4_6)]
        {
            unsafe extern "C" fn call<F: FnMut(SEXP, SEXP) -> bool>(
                name: SEXP,
                value: SEXP,
                f: *mut c_void,
            ) -> SEXP {
                // SAFETY: R passes the closure of `all_attributes`, which nobody else uses meanwhile.
                unsafe {
                    // R goes on as long as it gets a null pointer.
                    if (*f.cast::<F>())(name, value) {
                        std::ptr::null_mut()
                    } else {
                        R_NilValue
                    }
                }
            }
            R_mapAttrib(x, Some(call::<F>), (&raw mut f).cast()).is_null()
        }
        #[cfg(not(r_4_6))]
        {
            let mut cell = ATTRIB(x);
            while cell != R_NilValue {
                if !f(TAG(cell), CAR(cell)) {
                    return false;
                }
                cell = CDR(cell);
            }
            true
        }
    }
}

/// Gives attributes, in their order, to an object that has none and that nobody else has yet.
pub(crate) struct Attributes {
    object: SEXP,
    /// The cell of the one before.
    #[cfg(not(r_4_6))]
    last: SEXP,
}

impl Attributes {
    /// # Safety
    /// `object` is protected, and neither a symbol nor a single string.
    pub(crate) unsafe fn of(object: SEXP) -> Attributes {
        Attributes {
            object,
            // SAFETY: R's own constant.
            #[cfg(not(r_4_6))]
            last: unsafe { R_NilValue },
        }
    }

    /// Adds the next, whose name is a symbol. False if it cannot be set: then R has to read the
    /// object. `value` need not be protected.
    pub(crate) unsafe fn add(&mut self, name: SEXP, value: SEXP) -> bool {
        // SAFETY: on R's main thread; `object` is protected, and keeps what it was given before.
        unsafe {
            #[cfg(r_4_6)]
            {
                Rf_protect(value);
                let fits = super::attributes::fits(self.object, name, value);
                if fits {
                    Rf_setAttrib(self.object, name, value);
                }
                Rf_unprotect(1);
                fits
            }
            #[cfg(not(r_4_6))]
            {
                let cell = Rf_cons(value, R_NilValue);
                SET_TAG(cell, name);
                if self.last == R_NilValue {
                    SET_ATTRIB(self.object, cell);
                } else {
                    SETCDR(self.last, cell);
                }
                self.last = cell;
                true
            }
        }
    }

    /// Declares whether the object has a class. False if it has by what was set, and should not,
    /// or the other way round.
    pub(crate) unsafe fn finish(self, is_object: bool) -> bool {
        // SAFETY: on R's main thread; `object` is protected.
        unsafe {
            #[cfg(r_4_6)]
            return is_object == (super::Rf_isObject(self.object) == Rboolean::TRUE);
            #[cfg(not(r_4_6))]
            {
                SET_OBJECT(self.object, is_object.into());
                true
            }
        }
    }
}

/// The value of an ordinary variable in this very environment; `NULL` if there is none. That of
/// one that is not ordinary is evaluated by some versions.
pub(crate) unsafe fn get_var_in_frame(symbol: SEXP, env: SEXP) -> SEXP {
    // SAFETY: on R's main thread; `symbol` is a symbol and `env` an environment.
    unsafe {
        #[cfg(r_4_6)]
        return R_getVarEx(symbol, env, Rboolean::FALSE, R_NilValue);
        #[cfg(not(r_4_6))]
        {
            let value = Rf_findVarInFrame(env, symbol);
            if value == R_UnboundValue {
                return R_NilValue;
            }
            value
        }
    }
}

/// What a variable is, found out without evaluating anything.
#[derive(Clone, Copy)]
#[cfg_attr(all(r_4_5, not(r_4_6)), allow(dead_code))] // R 4.5 tells no parts of promises
pub(crate) enum Variable {
    Absent,
    Active,
    Value(SEXP),
    /// A promise that has been evaluated.
    Forced {
        value: SEXP,
        expr: SEXP,
    },
    /// A promise that has not.
    Delayed {
        expr: SEXP,
        env: SEXP,
    },
    /// A promise, where R does not tell more.
    #[cfg(all(r_4_5, not(r_4_6)))]
    Promise(SEXP),
}

impl Variable {
    pub(crate) unsafe fn of(symbol: SEXP, env: SEXP) -> Variable {
        // SAFETY: on R's main thread; `symbol` is a symbol and `env` an environment.
        unsafe {
            #[cfg(not(r_4_6))]
            if R_existsVarInFrame(env, symbol) == Rboolean::FALSE {
                return Variable::Absent;
            }
            Variable::of_existing(symbol, env)
        }
    }

    /// The same of a variable that exists.
    pub(crate) unsafe fn of_existing(symbol: SEXP, env: SEXP) -> Variable {
        // SAFETY: on R's main thread; the variable exists, as `R_BindingIsActive()` demands.
        unsafe {
            #[cfg(not(r_4_6))]
            if R_BindingIsActive(symbol, env) == Rboolean::TRUE {
                return Variable::Active;
            }
            Variable::of_known(symbol, env)
        }
    }

    /// The same of one that is not an active binding either: some versions would call that.
    #[cfg(not(r_4_6))]
    pub(crate) unsafe fn of_known(symbol: SEXP, env: SEXP) -> Variable {
        // SAFETY: on R's main thread; the variable is no active binding, so nothing is evaluated.
        unsafe {
            match Rf_findVarInFrame(env, symbol) {
                none if none == R_UnboundValue => Variable::Absent,
                promise if TYPEOF(promise) == SEXPTYPE::PROMSXP => Variable::of_promise(promise),
                value => Variable::Value(value),
            }
        }
    }

    #[cfg(r_4_6)]
    pub(crate) unsafe fn of_known(symbol: SEXP, env: SEXP) -> Variable {
        // SAFETY: on R's main thread; each accessor is called for the type of binding that it is for.
        unsafe {
            // R_BindingType_t of Rinternals.h
            match R_GetBindingType(symbol, env) {
                1 => Variable::Value(get_var_in_frame(symbol, env)),
                2 => Variable::Value(R_MissingArg),
                3 => Variable::Delayed {
                    expr: R_DelayedBindingExpression(symbol, env),
                    env: R_DelayedBindingEnvironment(symbol, env),
                },
                4 => Variable::Forced {
                    value: get_var_in_frame(symbol, env),
                    expr: R_ForcedBindingExpression(symbol, env),
                },
                5 => Variable::Active,
                _ => Variable::Absent,
            }
        }
    }

    #[cfg(not(r_4_5))]
    pub(crate) unsafe fn of_promise(promise: SEXP) -> Variable {
        // SAFETY: on R's main thread; `promise` is a promise, by its type.
        unsafe {
            let expr = R_PromiseExpr(promise);
            match PRVALUE(promise) {
                none if none == R_UnboundValue => Variable::Delayed {
                    expr,
                    env: PRENV(promise),
                },
                value => Variable::Forced { value, expr },
            }
        }
    }

    #[cfg(all(r_4_5, not(r_4_6)))]
    unsafe fn of_promise(promise: SEXP) -> Variable {
        Variable::Promise(promise)
    }

    /// What must stay alive for it to be made again.
    pub(crate) fn parts(self) -> [SEXP; 2] {
        // SAFETY: R's own variable.
        let nil = unsafe { R_NilValue };
        match self {
            Variable::Absent | Variable::Active => [nil, nil],
            Variable::Value(value) => [value, nil],
            Variable::Forced { value, expr } => [value, expr],
            Variable::Delayed { expr, env } => [expr, env],
            #[cfg(all(r_4_5, not(r_4_6)))]
            Variable::Promise(promise) => [promise, nil],
        }
    }

    /// Whether nobody has assigned anything to it since it was `before`: a promise stays the same
    /// when it is evaluated.
    pub(crate) fn is_still(self, before: Variable) -> bool {
        use Variable::{Active, Delayed, Forced, Value};
        match (before, self) {
            (Active, Active) => true,
            (Value(a), Value(b)) => a == b,
            (Delayed { expr: a, .. } | Forced { expr: a, .. }, Forced { expr: b, .. }) => a == b,
            (Delayed { expr: a, env: c }, Delayed { expr: b, env: d }) => a == b && c == d,
            #[cfg(all(r_4_5, not(r_4_6)))]
            (Variable::Promise(a), Variable::Promise(b)) => a == b,
            _ => false,
        }
    }

    /// Makes a variable what this one was. An active binding cannot be made again.
    pub(crate) unsafe fn make(self, symbol: SEXP, env: SEXP) {
        // SAFETY: on R's main thread; the parts are protected.
        unsafe {
            match self {
                Variable::Absent | Variable::Active => {}
                Variable::Value(value) | Variable::Forced { value, .. } => {
                    Rf_defineVar(symbol, value, env);
                }
                Variable::Delayed {
                    expr,
                    env: eval_env,
                } => delayed_assign(symbol, expr, eval_env, env),
                #[cfg(all(r_4_5, not(r_4_6)))]
                Variable::Promise(promise) => Rf_defineVar(symbol, promise, env),
            }
        }
    }
}

/// Makes a variable a promise to evaluate an expression.
#[cfg(r_4_6)]
pub(crate) unsafe fn delayed_assign(symbol: SEXP, expr: SEXP, eval_env: SEXP, env: SEXP) {
    // SAFETY: on R's main thread; the arguments are protected.
    unsafe {
        R_MakeDelayedBinding(symbol, expr, eval_env, env);
    }
}

#[cfg(not(r_4_6))]
pub(crate) unsafe fn delayed_assign(symbol: SEXP, expr: SEXP, eval_env: SEXP, env: SEXP) {
    // SAFETY: on R's main thread; the arguments are protected, and so is what was allocated.
    unsafe {
        static DELAYED_ASSIGN: Constant =
            // SAFETY: symbols need no protection.
            Constant::new(|| unsafe { Rf_install(c"delayedAssign".as_ptr()) });
        let name = Rf_protect(Rf_ScalarString(PRINTNAME(symbol)));
        let args = Rf_protect(Rf_list4(name, expr, eval_env, env));
        let call = Rf_protect(Rf_lcons(DELAYED_ASSIGN.get(), args));
        Rf_eval(call, R_BaseEnv);
        Rf_unprotect(3);
    }
}

/// A closure of these parts; `None` if they cannot be parts of one.
pub(crate) unsafe fn make_closure(formals: SEXP, body: SEXP, env: SEXP) -> Option<SEXP> {
    // SAFETY: on R's main thread; the parts are protected and have the types checked above; so is what was
    // allocated.
    unsafe {
        let formals_fit = matches!(TYPEOF(formals), SEXPTYPE::LISTSXP | SEXPTYPE::NILSXP);
        if !formals_fit || TYPEOF(env) != SEXPTYPE::ENVSXP {
            return None;
        }
        #[cfg(r_4_5)]
        return Some(R_mkClosure(formals, body, env));
        #[cfg(not(r_4_5))]
        {
            // In the way in which R code makes one.
            // SAFETY: on R's main thread; the base package keeps the function.
            static FUNCTION: Constant = Constant::new(|| unsafe {
                let name = Rf_install(c"function".as_ptr());
                Rf_findFun(name, R_BaseEnv)
            });
            let parts = Rf_protect(Rf_list3(formals, body, R_NilValue));
            let call = Rf_protect(Rf_lcons(FUNCTION.get(), parts));
            let closure = Rf_eval(call, env);
            Rf_unprotect(2);
            Some(closure)
        }
    }
}

/// A namespace that is loaded already, by its symbol.
pub(crate) unsafe fn loaded_namespace(name: SEXP) -> Option<SEXP> {
    // SAFETY: on R's main thread; `name` is a symbol.
    unsafe {
        #[cfg(r_4_6)]
        let namespace = R_getRegisteredNamespace(R_CHAR(PRINTNAME(name)));
        #[cfg(not(r_4_6))]
        let namespace = get_var_in_frame(name, R_NamespaceRegistry);
        (TYPEOF(namespace) == SEXPTYPE::ENVSXP).then_some(namespace)
    }
}

/// The text of R's last error, to be copied before R is called again.
#[cfg(any(not(r_4_5), r_4_6))]
pub(crate) unsafe fn last_error<'a>() -> &'a CStr {
    // SAFETY: on R's main thread; the text ends with a zero.
    unsafe { CStr::from_ptr(R_curErrorBuf()) }
}

/// Empties the text of R's last error.
#[cfg(any(not(r_4_5), r_4_6))]
pub(crate) unsafe fn forget_error() {
    // SAFETY: on R's main thread, whose buffer has at least one byte.
    unsafe {
        *R_curErrorBuf().cast_mut() = 0;
    }
}

/// What R's last error is after [`forget_error`], as `forget_error()` of R/evaluate.R makes it.
#[cfg(all(r_4_5, not(r_4_6)))]
const NO_ERROR: &CStr = c"Error : none\n";

#[cfg(all(r_4_5, not(r_4_6)))]
pub(crate) unsafe fn last_error<'a>() -> &'a CStr {
    // SAFETY: on R's main thread; `geterrmessage()` returns one string, and R keeps it until its next error.
    unsafe {
        // SAFETY: symbols need no protection.
        static GET: Constant = Constant::new(|| unsafe { super::call0(c"geterrmessage") });
        let text = Rf_eval(GET.get(), R_BaseEnv);
        match CStr::from_ptr(R_CHAR(STRING_ELT(text, 0))) {
            none if none == NO_ERROR => c"",
            text => text,
        }
    }
}

#[cfg(all(r_4_5, not(r_4_6)))]
pub(crate) unsafe fn forget_error() {
    // SAFETY: on R's main thread.
    unsafe {
        // SAFETY: symbols need no protection.
        static SET: Constant = Constant::new(|| unsafe { super::call0(c"forget_error") });
        if !last_error().is_empty() {
            Rf_eval(SET.get(), NAMESPACE.get());
        }
    }
}
