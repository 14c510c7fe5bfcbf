//! URLs: parsing, extending and making them.

use extendr_api::prelude::*;
use extendr_api::Result;
use mirai_core::transport::{self, Address};

use crate::r;

/// Parses URLs.
pub(crate) fn addresses(urls: &[String]) -> Result<Vec<Address>> {
    urls.iter()
        .map(|url| url.parse::<Address>().map_err(r::error))
        .collect()
}

fn texts(addresses: &[Address]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// One URL made into `n`.
#[extendr]
fn extend_url(url: &str, n: i32) -> Result<Vec<String>> {
    let address: Address = url.parse().map_err(r::error)?;
    let all = address.extend(n as usize).map_err(r::error)?;
    Ok(texts(&all))
}

/// URLs with a random part at the end of each one's path, if it has any.
#[extendr]
fn with_tokens(urls: Vec<String>) -> Result<Vec<String>> {
    let addresses = addresses(&urls)?;
    let with_token = |address: &Address| address.with_path(&mirai_core::sys::token());
    Ok(texts(&addresses.iter().map(with_token).collect::<Vec<_>>()))
}

/// The name of this machine.
#[extendr]
fn node_name() -> String {
    mirai_core::sys::node_name()
}

/// A fresh URL on this machine.
#[extendr]
fn fresh_local_url() -> String {
    transport::local_url()
}

extendr_module! {
    mod urls;
    fn extend_url;
    fn with_tokens;
    fn node_name;
    fn fresh_local_url;
}
