//! What we need of R's C interface beyond extendr, and small safe helpers. Only what is API in R 4.6
//! and in all before from 4.2 on; the rest is in [`versions`].

#[cfg(r_4_6)]
mod attributes;
mod versions;

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void, CStr};

pub(crate) use extendr_ffi::backports::get_parent_env;
pub(crate) use versions::*;

use extendr_ffi::{
    R_CallMethodDef, R_NaString, R_NamesSymbol, R_NilValue, R_PreserveObject, Rboolean,
    Rf_allocVector, Rf_getAttrib, Rf_install, Rf_mkCharLenCE, Rf_protect, Rf_unprotect, Rf_xlength,
    INTEGER, LOGICAL, REAL, R_CHAR, SET_STRING_ELT, SEXP, SEXPTYPE, STRING_ELT, TYPEOF, VECTOR_ELT,
};

// extendr-ffi makes SEXPREC opaque by a non-exhaustive struct; only pointers to it pass.
#[allow(improper_ctypes)]
extern "C" {
    pub(crate) static mut R_interrupts_pending: c_int;
    static mut R_interrupts_suspended: Rboolean;
    pub(crate) fn R_ToplevelExec(
        f: Option<unsafe extern "C" fn(*mut c_void)>,
        data: *mut c_void,
    ) -> Rboolean;
    pub(crate) fn R_ExecWithCleanup(
        f: Option<unsafe extern "C" fn(*mut c_void) -> SEXP>,
        data: *mut c_void,
        cleanup: Option<unsafe extern "C" fn(*mut c_void)>,
        cleanup_data: *mut c_void,
    ) -> SEXP;
    pub(crate) fn R_MakeActiveBinding(symbol: SEXP, function: SEXP, env: SEXP);
    pub(crate) fn R_tryCatchError(
        body: Option<unsafe extern "C" fn(*mut c_void) -> SEXP>,
        data: *mut c_void,
        handler: Option<unsafe extern "C" fn(SEXP, *mut c_void) -> SEXP>,
        handler_data: *mut c_void,
    ) -> SEXP;
    pub(crate) fn R_removeVarFromFrame(symbol: SEXP, env: SEXP);
    pub(crate) fn R_ActiveBindingFunction(symbol: SEXP, env: SEXP) -> SEXP;
    pub(crate) fn R_lsInternal3(env: SEXP, all: Rboolean, sorted: Rboolean) -> SEXP;
    pub(crate) fn R_ClosureExpr(function: SEXP) -> SEXP;
    pub(crate) fn R_gc();
    pub(crate) fn ALTREP(x: SEXP) -> c_int;
    pub(crate) fn R_LockBinding(symbol: SEXP, env: SEXP);
    pub(crate) fn R_unLockBinding(symbol: SEXP, env: SEXP);
    pub(crate) fn R_LockEnvironment(env: SEXP, bindings: Rboolean);
    #[cfg(not(r_4_6))]
    fn Rf_ScalarString(x: SEXP) -> SEXP;
    #[cfg(not(r_4_6))]
    fn Rf_list4(a: SEXP, b: SEXP, c: SEXP, d: SEXP) -> SEXP;
    pub(crate) fn R_BindingIsLocked(symbol: SEXP, env: SEXP) -> Rboolean;
    pub(crate) fn R_EnvironmentIsLocked(env: SEXP) -> Rboolean;
    pub(crate) fn SETCAR(cell: SEXP, value: SEXP) -> SEXP;
    pub(crate) fn Rf_eval(expr: SEXP, env: SEXP) -> SEXP;
    pub(crate) fn Rf_isObject(x: SEXP) -> Rboolean;
    pub(crate) fn Rf_isS4(x: SEXP) -> Rboolean;
    fn Rf_asS4(x: SEXP, flag: Rboolean, complete: c_int) -> SEXP;
    pub(crate) fn Rf_getCharCE(string: SEXP) -> extendr_ffi::cetype_t;
    pub(crate) fn Rf_inherits(x: SEXP, class: *const c_char) -> Rboolean;
    pub(crate) fn Rf_installChar(name: SEXP) -> SEXP;
    pub(crate) fn Rf_lang2(function: SEXP, a: SEXP) -> SEXP;
    pub(crate) fn Rf_lang3(function: SEXP, a: SEXP, b: SEXP) -> SEXP;
    pub(crate) fn Rf_asLogical(x: SEXP) -> c_int;
    pub(crate) fn Rf_lang4(function: SEXP, a: SEXP, b: SEXP, c: SEXP) -> SEXP;
    pub(crate) fn Rf_list3(a: SEXP, b: SEXP, c: SEXP) -> SEXP;
    pub(crate) fn Rf_ScalarInteger(x: c_int) -> SEXP;
    pub(crate) fn Rf_ScalarLogical(x: c_int) -> SEXP;
    #[cfg(unix)]
    pub(crate) fn Rf_ScalarReal(x: f64) -> SEXP;
    pub(crate) fn R_GetCCallable(
        package: *const c_char,
        name: *const c_char,
    ) -> extendr_ffi::DL_FUNC;
    fn R_CheckUserInterrupt();
    fn R_FindNamespace(info: SEXP) -> SEXP;
}

#[cfg(windows)]
extern "C" {
    /// Upon Ctrl-C, R's handler sets it, in a thread of the system's. `R_ProcessEvents()` clears it and interrupts;
    /// that is called by `R_CheckUserInterrupt()`, and also by `Sys.sleep()`, which does not look at
    /// `R_interrupts_pending`.
    static mut UserBreak: c_int;
}

/// The text of an error, on the stack, where a long jump may leave it. Cut if it is long.
struct Line {
    /// Ends with a zero.
    bytes: [u8; 1024],
    length: usize,
}

impl Line {
    fn new(text: impl std::fmt::Display) -> Line {
        let mut line = Line {
            bytes: [0; 1024],
            length: 0,
        };
        // It fails where the text is cut.
        let _ = std::fmt::Write::write_fmt(&mut line, format_args!("{text}"));
        line
    }
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for char in text
            .chars()
            .map(|char| if char == '\0' { '\u{fffd}' } else { char })
        {
            let mut buffer = [0; 4];
            let char = char.encode_utf8(&mut buffer).as_bytes();
            // The last byte stays zero.
            let end = self.length + char.len();
            if end >= self.bytes.len() {
                return Err(std::fmt::Error);
            }
            self.bytes[self.length..end].copy_from_slice(char);
            self.length = end;
        }
        Ok(())
    }
}

/// Raises a simple R error, without calling R code. For R's callbacks, and for what a daemon answers as the value of a
/// task; [`error`](crate::error) has the errors for the user. As there, the text is never R's format, and `text` is
/// dropped first.
///
/// # Safety
/// On R's main thread. No Rust value that owns anything may be alive in the callers' frames.
pub(crate) unsafe fn raise(text: impl std::fmt::Display) -> ! {
    let line = Line::new(&text);
    drop(text);
    // SAFETY: as this function demands; `Line` ends with a zero.
    unsafe { extendr_ffi::Rf_error(c"%s".as_ptr(), line.bytes.as_ptr()) }
}

/// Raises R's last error again.
///
/// # Safety
/// As [`raise`].
pub(crate) unsafe fn raise_again() -> ! {
    // SAFETY: as this function demands; R's text ends with a zero, and R copies it.
    unsafe { extendr_ffi::Rf_error(c"%s".as_ptr(), last_error().as_ptr()) }
}

/// A `.Call` routine of `n` arguments, for the table.
pub(crate) fn routine(name: &'static CStr, function: *const (), n: i32) -> R_CallMethodDef {
    R_CallMethodDef {
        name: name.as_ptr(),
        // SAFETY: R calls it with as many SEXP as the table says.
        fun: unsafe { std::mem::transmute::<*const (), extendr_ffi::DL_FUNC>(function) },
        numArgs: n,
    }
}

/// Whether the user has pressed Ctrl-C and R is ready to hear of it.
pub(crate) fn interrupted() -> bool {
    // SAFETY: R's own variable.
    unsafe {
        interrupt_is_pending()
            && std::ptr::addr_of!(R_interrupts_suspended).read_volatile() == Rboolean::FALSE
    }
}

/// Whether R has noted an interrupt and not yet acted upon it. From any thread.
pub(crate) fn interrupt_is_pending() -> bool {
    // SAFETY: R's own variables; a signal handler may write the first at any time, and another thread the second.
    unsafe {
        #[cfg(windows)]
        if std::ptr::addr_of!(UserBreak).read_volatile() != 0 {
            return true;
        }
        std::ptr::addr_of!(R_interrupts_pending).read_volatile() != 0
    }
}

/// What R's handler does upon Ctrl-C. From a signal handler; on Windows, from any thread.
pub(crate) fn set_interrupt() {
    // SAFETY: as above.
    unsafe {
        #[cfg(windows)]
        std::ptr::addr_of_mut!(UserBreak).write_volatile(1);
        #[cfg(not(windows))]
        std::ptr::addr_of_mut!(R_interrupts_pending).write_volatile(1);
    }
}

/// Forgets a pending Ctrl-C.
pub(crate) fn clear_interrupt() {
    // SAFETY: as above.
    unsafe {
        #[cfg(windows)]
        std::ptr::addr_of_mut!(UserBreak).write_volatile(0);
        std::ptr::addr_of_mut!(R_interrupts_pending).write_volatile(0);
    }
}

/// Puts off Ctrl-C until `f` has returned, out of which no long jump may lead.
///
/// # Safety
/// On R's main thread.
pub(crate) unsafe fn without_interrupts<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: on R's main thread, which alone writes this variable.
    unsafe {
        let before = R_interrupts_suspended;
        R_interrupts_suspended = Rboolean::TRUE;
        let value = f();
        R_interrupts_suspended = before;
        value
    }
}

/// Lets R act on an interrupt, which usually does not return.
///
/// # Safety
/// No Rust value that owns anything may be alive in the callers' frames.
pub(crate) unsafe fn obey_interrupt() {
    // SAFETY: as this function demands.
    unsafe {
        R_CheckUserInterrupt();
    }
}

/// A constant that is made once and kept for the session.
pub(crate) struct Constant {
    value: Cell<SEXP>,
    make: fn() -> SEXP,
}

// SAFETY: only used on R's main thread, as everything in this crate.
unsafe impl Sync for Constant {}

impl Constant {
    pub(crate) const fn new(make: fn() -> SEXP) -> Constant {
        Constant {
            value: Cell::new(std::ptr::null_mut()),
            make,
        }
    }

    pub(crate) fn get(&self) -> SEXP {
        if self.value.get().is_null() {
            let value = (self.make)();
            // SAFETY: a fresh R object; protected before the next allocation by R.
            unsafe { R_PreserveObject(value) };
            self.value.set(value);
        }
        self.value.get()
    }
}

/// Defines `Constant`s for symbols.
macro_rules! symbols {
    ($($name:ident = $text:literal;)*) => {
        $(pub(crate) static $name: $crate::r::Constant = $crate::r::Constant::new(|| {
            // SAFETY: R copies the name.
            unsafe { extendr_ffi::Rf_install($text.as_ptr()) }
        });)*
    };
}
pub(crate) use symbols;

/// Our package's namespace.
// SAFETY: on R's main thread; `name` is protected. Our namespace is loaded when our code runs.
pub(crate) static NAMESPACE: Constant = Constant::new(|| unsafe {
    let name = Rf_protect(string("mirai"));
    let namespace = R_FindNamespace(name);
    Rf_unprotect(1);
    namespace
});

// SAFETY: symbols need no protection.
static SET_PARENT: Constant = Constant::new(|| unsafe { Rf_install(c"parent.env<-".as_ptr()) });

/// Makes one environment the parent of another.
pub(crate) unsafe fn set_parent(env: SEXP, parent: SEXP) {
    // SAFETY: on R's main thread; both are environments and protected, and so is the call.
    unsafe {
        let call = Rf_protect(Rf_lang3(SET_PARENT.get(), env, parent));
        Rf_eval(call, extendr_ffi::R_BaseEnv);
        Rf_unprotect(1);
    }
}

/// Makes an object that nobody else has yet an S4 object.
pub(crate) unsafe fn set_s4(x: SEXP) {
    // SAFETY: on R's main thread; without `complete`, R changes the object in place if nobody else has it.
    unsafe {
        Rf_asS4(x, Rboolean::TRUE, 0);
    }
}

/// The call of a function by name without arguments.
#[cfg(all(r_4_5, not(r_4_6)))]
unsafe fn call0(name: &CStr) -> SEXP {
    // SAFETY: on R's main thread; symbols need no protection.
    unsafe { extendr_ffi::Rf_lcons(Rf_install(name.as_ptr()), extendr_ffi::R_NilValue) }
}

/// A function of our namespace by name.
pub(crate) unsafe fn our_function(name: &CStr) -> SEXP {
    // SAFETY: on R's main thread; R copies the name, and our namespace keeps the function.
    unsafe { extendr_ffi::Rf_findFun(Rf_install(name.as_ptr()), NAMESPACE.get()) }
}

/// A character vector of one UTF-8 string.
pub(crate) unsafe fn string(text: &str) -> SEXP {
    // SAFETY: on R's main thread.
    unsafe { strings(&[text]) }
}

pub(crate) unsafe fn strings(texts: &[&str]) -> SEXP {
    // SAFETY: on R's main thread; `out` is protected, and indices are below its length.
    unsafe {
        let out = Rf_protect(Rf_allocVector(SEXPTYPE::STRSXP, texts.len() as _));
        for (i, text) in texts.iter().enumerate() {
            // R has no strings with a zero in them.
            let text = text.split('\0').next().unwrap_or_default();
            let char = Rf_mkCharLenCE(
                text.as_ptr().cast(),
                text.len() as _,
                extendr_ffi::cetype_t::CE_UTF8,
            );
            SET_STRING_ELT(out, i as _, char);
        }
        Rf_unprotect(1);
        out
    }
}

pub(crate) unsafe fn integers(values: &[i32]) -> SEXP {
    // SAFETY: on R's main thread; `out` has room for all values, and nothing is allocated after it.
    unsafe {
        let out = Rf_allocVector(SEXPTYPE::INTSXP, values.len() as _);
        std::ptr::copy_nonoverlapping(values.as_ptr(), INTEGER(out), values.len());
        out
    }
}

/// The text of a character vector of length one, borrowed from R.
pub(crate) unsafe fn as_str<'a>(x: SEXP) -> Option<&'a str> {
    // SAFETY: on R's main thread; `x` has one element, whose text R keeps as long as it.
    unsafe {
        if TYPEOF(x) != SEXPTYPE::STRSXP || Rf_xlength(x) != 1 {
            return None;
        }
        string_at(x, 0)
    }
}

/// The text of an element of a character vector, borrowed from R; `None` if it is `NA` or no UTF-8. `i` is below its length.
pub(crate) unsafe fn string_at<'a>(x: SEXP, i: isize) -> Option<&'a str> {
    // SAFETY: on R's main thread; `x` is a character vector of more than `i` elements, whose text R keeps as long as it.
    unsafe {
        let string = STRING_ELT(x, i);
        if string == R_NaString {
            return None;
        }
        CStr::from_ptr(R_CHAR(string)).to_str().ok()
    }
}

/// The element of a list by its name; `NULL` if there is none.
pub(crate) unsafe fn element(list: SEXP, name: &str) -> SEXP {
    // SAFETY: on R's main thread; a list and its names have the same length.
    unsafe {
        let names = Rf_getAttrib(list, R_NamesSymbol);
        let is_it =
            |i: &isize| CStr::from_ptr(R_CHAR(STRING_ELT(names, *i))).to_bytes() == name.as_bytes();
        match (0..Rf_xlength(names)).find(is_it) {
            Some(i) => VECTOR_ELT(list, i),
            None => R_NilValue,
        }
    }
}

/// A logical value of length one; `None` if it is `NA` or something else.
pub(crate) unsafe fn as_flag(x: SEXP) -> Option<bool> {
    // SAFETY: on R's main thread; `x` is logical and has one element.
    unsafe {
        if TYPEOF(x) != SEXPTYPE::LGLSXP || Rf_xlength(x) != 1 {
            return None;
        }
        match *LOGICAL(x) {
            0 => Some(false),
            i32::MIN => None,
            _ => Some(true),
        }
    }
}

/// A number of length one.
pub(crate) unsafe fn as_number(x: SEXP) -> Option<f64> {
    // SAFETY: on R's main thread; `x` has one element of the type that is read.
    unsafe {
        if Rf_xlength(x) != 1 {
            return None;
        }
        match TYPEOF(x) {
            SEXPTYPE::INTSXP => Some(f64::from(*INTEGER(x))),
            SEXPTYPE::REALSXP => Some(*REAL(x)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        let line = Line::new(text);
        let text = CStr::from_bytes_until_nul(&line.bytes).expect("the last byte is zero");
        text.to_str().expect("cut between characters").into()
    }

    #[test]
    fn the_text_of_an_error_holds_no_zero_and_is_cut_between_characters() {
        assert_eq!(line("100 % of %s\0!"), "100 % of %s\u{fffd}!");
        assert_eq!(line(&"\u{e9}".repeat(600)), "\u{e9}".repeat(511));
    }
}
