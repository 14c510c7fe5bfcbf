//! Which mirai R holds, and when it lets their tasks go.
//!
//! The task of a mirai that is dropped unread is let go by the collector, by a finalizer. But every
//! collection, even of the youngest objects, walks through all finalizers of the session: with one
//! for each of a hundred thousand mirai that is half of its time. So where there are many, up to
//! [`SHARING`] mirai made one after the other share a [`Block`] with one finalizer, which lets all
//! their tasks go when the last of these mirai is dropped or read. Therefore a mirai that is alive
//! and unread can keep the results of up to `SHARING - 1` others in memory that were dropped
//! unread; while fewer than [`MOST_ALONE`] blocks exist it keeps no other, because each mirai has a
//! block of its own.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use extendr_ffi::{
    R_ClearExternalPtr, R_ExternalPtrAddr, R_ExternalPtrTag, R_MakeExternalPtr, R_NilValue,
    R_RegisterCFinalizerEx, R_SetExternalPtrAddr, Rboolean, Rf_cons, Rf_protect, Rf_unprotect, CAR,
    SEXP, SEXPTYPE, TYPEOF,
};
use mirai_core::heap;
use mirai_core::host;
use mirai_core::task::Task;

use crate::forks;
use crate::r::{self, symbols, Constant};

symbols! {
    BLOCK = c"mirai_block";
}

/// The task of a mirai, or null.
pub(super) type Slot = Cell<*const Task>;

/// What the external pointer points to that is the tag of `.task`. Its own tag is [`BLOCK`].
pub(super) struct Block {
    pub(super) slots: Vec<Slot>,
}

/// Blocks that the collector has not taken.
static BLOCKS: AtomicUsize = AtomicUsize::new(0);
/// Fewer blocks than this have one mirai each. A finalizer costs every collection some tenths of
/// a microsecond.
const MOST_ALONE: usize = 256;
/// How many mirai share a block.
const SHARING: usize = 64;

/// Mirai that R holds, and the largest number of them since the heap was trimmed.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// A session that has held this many mirai (some hundred megabytes) trims the heap when most of them are gone.
const MANY: usize = 100_000;

fn one_more() {
    let live = LIVE.fetch_add(1, Ordering::Relaxed) + 1;
    if live > PEAK.load(Ordering::Relaxed) {
        PEAK.store(live, Ordering::Relaxed);
    }
}

fn fewer(gone: usize) {
    let live = LIVE.fetch_sub(gone, Ordering::Relaxed) - gone;
    let peak = PEAK.load(Ordering::Relaxed);
    if peak >= MANY && live < peak / 8 {
        // Once for these: R is about to free what else they were made of.
        PEAK.store(live, Ordering::Relaxed);
        heap::trim_soon(|| LIVE.load(Ordering::Relaxed) < MANY);
    }
}

/// A pairlist of one cell that holds the block that has slots left, or `NULL`. No other block gets
/// a mirai more, so that none can get one while its finalizer is already due.
// SAFETY: on R's main thread.
static BEGUN: Constant = Constant::new(|| unsafe { Rf_cons(R_NilValue, R_NilValue) });

impl Block {
    /// A block and the number of a slot in it, from 1.
    pub(super) unsafe fn take_slot() -> (SEXP, usize) {
        // SAFETY: on R's main thread; `BEGUN` is preserved and keeps the block. The new pointer is protected until
        // it is returned.
        unsafe {
            let begun = CAR(BEGUN.get());
            if let Some(block) = Block::of(begun) {
                let slot = block.add();
                if slot == SHARING {
                    r::SETCAR(BEGUN.get(), R_NilValue);
                }
                return (begun, slot);
            }
            let pointer = Rf_protect(R_MakeExternalPtr(
                std::ptr::null_mut(),
                BLOCK.get(),
                R_NilValue,
            ));
            R_RegisterCFinalizerEx(pointer, Some(Block::finalize), Rboolean::FALSE);
            let shared = BLOCKS.fetch_add(1, Ordering::Relaxed) >= MOST_ALONE;
            let mut block = Box::new(Block {
                slots: Vec::with_capacity(if shared { SHARING } else { 1 }),
            });
            let slot = block.add();
            R_SetExternalPtrAddr(pointer, Box::into_raw(block).cast());
            if shared {
                r::SETCAR(BEGUN.get(), pointer);
            }
            Rf_unprotect(1);
            (pointer, slot)
        }
    }

    fn add(&mut self) -> usize {
        one_more();
        self.slots.push(Cell::new(std::ptr::null()));
        self.slots.len()
    }

    /// What an R object points to, if that is a block that has not been finalized.
    pub(super) unsafe fn of<'a>(pointer: SEXP) -> Option<&'a mut Block> {
        // SAFETY: the type and the tag say that the address is null or that of a `Block`, which lives until the
        // pointer is finalized. The caller does not keep two of them.
        unsafe {
            if TYPEOF(pointer) != SEXPTYPE::EXTPTRSXP || R_ExternalPtrTag(pointer) != BLOCK.get() {
                return None;
            }
            R_ExternalPtrAddr(pointer).cast::<Block>().as_mut()
        }
    }

    /// The last of its mirai has been dropped or read.
    unsafe extern "C" fn finalize(pointer: SEXP) {
        // SAFETY: R calls it once with the pointer, whose address is null or from `Box::into_raw`.
        unsafe {
            let block = R_ExternalPtrAddr(pointer).cast::<Block>();
            R_ClearExternalPtr(pointer);
            BLOCKS.fetch_sub(1, Ordering::Relaxed);
            // A forked process leaves alone what it shares with its parent's threads: one of
            // them may have held a lock when it was forked.
            if !block.is_null() && !forks::is_forked() {
                let slots = Box::from_raw(block).slots;
                slots.iter().for_each(|slot| empty(slot));
                fewer(slots.len());
            }
            // The next mirai have blocks of their own. Those that share this one do not keep it
            // any longer than they need it.
            if BLOCKS.load(Ordering::Relaxed) < MOST_ALONE {
                r::SETCAR(BEGUN.get(), R_NilValue);
            }
        }
    }
}

/// Lets a task go. It is cancelled if it was needed by tasks that have ended without it.
pub(super) unsafe fn empty(slot: &Slot) {
    // SAFETY: a slot holds null or a pointer from `Arc::into_raw`, which is taken out here.
    unsafe {
        let task = slot.replace(std::ptr::null());
        if !task.is_null() {
            let task = Arc::from_raw(task);
            task.abandon();
            if !forks::is_forked() {
                host::cancel_unwanted();
            }
        }
    }
}
