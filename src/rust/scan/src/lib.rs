//! Checks bytes that claim to be an R object in R's serialization format, before R sees them.
//!
//! R's `R_Unserialize()` trusts its input: it reads lengths and writes that many bytes, puts
//! whatever it finds into the fields of environments and closures, and calls itself for every level
//! of nesting. What comes from a peer is therefore [scanned](Scanner::scan) first, in one pass and
//! without recursion.
//!
//! # What the scan promises
//! For bytes that pass, `R_Unserialize()` (and mirai's own reader)
//! - reads exactly the bytes that are there, and allocates in proportion to them;
//! - finds in each field what R's C code takes for granted there without a check: environments as
//!   parents and as environments of closures and promises, no cycle among parents, pairlists of
//!   named cells as formals, attributes and variables, a hash table with at least one bucket,
//!   pairlists that end;
//! - finds attributes that agree with their object, where R's C code uses one as an index of the
//!   other: names, dimensions and their names, the codes of factors, row names, time series, class;
//! - makes no ALTREP object but of R's own classes with a sound state, and no byte code, which R
//!   runs without a check: see [`strip`];
//! - does not change objects that it shares with all of the session (functions of R's that are
//!   built in), asks iconv for no file, and loads packages by valid names only.
//!
//! And the [`Depth`] of the nesting is known.
//!
//! # What it leaves to R
//! What R answers by an ordinary error, such as a zero within a string or an unknown built-in
//! function. What any R code may do once it is run: the functions, promises and active bindings that a
//! peer sends do what they say when they are called. What packages take for granted of
//! objects of their own classes. Memory: a sequence such as `1:1e9` takes some when it is used. And
//! text that is not valid in the encoding that it claims, which honest values have, too.

#![forbid(unsafe_code)]

mod format;
mod scan;
mod strip;
#[cfg(test)]
mod tests;

pub use scan::{Hooked, Scanner};
pub use strip::{Stripped, strip};

/// A part of the bytes that has arrived in shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// How many of the other bytes come before it.
    pub at: usize,
    pub data: &'a [u8],
}

/// How deeply objects are nested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Where a pairlist is one level, however long it is.
    pub levels: usize,
    /// Where each of its cells is one more, as `R_Unserialize()` has it.
    pub calls: usize,
}

/// Why bytes are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// How many bytes came before, apart from pieces.
    pub at: usize,
    pub what: &'static str,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (at byte {})", self.what, self.at)
    }
}

impl std::error::Error for Error {}
