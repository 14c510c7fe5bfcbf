//! Systems without segments: the types exist, but have no values.

use std::io;

/// Does nothing here.
pub fn prefer_huge_pages(_: &mut [std::mem::MaybeUninit<u8>]) {}

/// Unknown here.
pub fn private_bytes() -> Option<usize> {
    None
}

/// Has no values here.
pub enum Draft {}

impl Draft {
    /// See `linux`: not here.
    pub fn new() -> Option<Draft> {
        None
    }

    /// See `linux`: not here.
    pub fn write(&mut self, _: &[u8]) -> io::Result<()> {
        match *self {}
    }

    /// See `linux`: not here.
    pub fn seal(self) -> Option<Segment> {
        match self {}
    }
}

/// Has no values here.
#[derive(Clone, Debug)]
pub enum Segment {}

impl Segment {
    /// See `linux`: not here.
    pub fn copy_of(_: &[u8]) -> Option<Segment> {
        None
    }

    /// See `linux`: not here.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match *self {}
    }

    /// See `linux`: not here.
    pub fn weight(&self) -> usize {
        match *self {}
    }

    pub(crate) fn map(&self) -> io::Result<Mapping> {
        match *self {}
    }

    pub(crate) fn append_to(&self, _: &mut Vec<u8>) {
        match *self {}
    }
}

/// Has no values here.
#[derive(Debug)]
pub enum Mapping {}

impl Mapping {
    pub(super) fn anonymous(_: usize) -> io::Result<Mapping> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn grow(&mut self, _: usize) -> io::Result<()> {
        match *self {}
    }

    /// See `linux`: not here.
    pub fn as_ptr(&self) -> *mut u8 {
        match *self {}
    }

    /// See `linux`: not here.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        match *self {}
    }

    /// See `linux`: not here.
    pub fn file(&self) -> u64 {
        match *self {}
    }

    pub(super) fn append_to(&self, _: &mut Vec<u8>) {
        match *self {}
    }

    /// # Safety
    /// None is needed.
    pub(super) unsafe fn bytes(&self) -> &[u8] {
        match *self {}
    }

    /// See `linux`: not here.
    pub fn is_of_segment(&self) -> bool {
        match *self {}
    }

    pub(crate) fn original(&self) -> Option<Segment> {
        match *self {}
    }

    /// See `linux`: not here.
    pub fn has_hardly_changed(&self) -> bool {
        match *self {}
    }

    /// # Safety
    /// None is needed.
    pub unsafe fn segment(&self) -> Option<Segment> {
        match *self {}
    }

    /// # Safety
    /// None is needed.
    pub unsafe fn duplicate(&self) -> Option<Mapping> {
        match *self {}
    }
}
