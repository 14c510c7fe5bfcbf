//! URLs: parsing, extending and making them.

use mirai_core::transport::{self, Address, AddressError};

use crate::error::{Error, Result};
use crate::functions::functions;

/// Parses URLs.
///
/// # Errors
/// One is not valid.
pub(crate) fn addresses(urls: &[String]) -> std::result::Result<Vec<Address>, AddressError> {
    urls.iter().map(|url| url.parse()).collect()
}

/// Checks URLs.
fn check_urls(urls: Vec<String>) -> Result<()> {
    addresses(&urls).map_err(Error::connect)?;
    Ok(())
}

fn texts(addresses: &[Address]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// One URL made into `n`.
fn extend_url(url: &str, n: i32) -> Result<Vec<String>> {
    let address: Address = url.parse().map_err(Error::argument)?;
    let all = address.extend(n as usize).map_err(Error::argument)?;
    Ok(texts(&all))
}

/// URLs with a random part at the end of each one's path, if it has any.
fn with_tokens(urls: Vec<String>) -> Result<Vec<String>> {
    let addresses = addresses(&urls).map_err(Error::connect)?;
    let with_token = |address: &Address| address.with_path(&mirai_core::sys::token());
    Ok(texts(&addresses.iter().map(with_token).collect::<Vec<_>>()))
}

/// The name of this machine.
fn node_name() -> Result<String> {
    Ok(mirai_core::sys::node_name())
}

/// A fresh URL on this machine.
fn fresh_local_url() -> Result<String> {
    Ok(transport::local_url())
}

functions! {
    fn check_urls(urls);
    fn extend_url(url, n);
    fn with_tokens(urls);
    fn node_name();
    fn fresh_local_url();
}
