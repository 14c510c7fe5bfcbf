//! The relay: a daemon of one host that passes its tasks on to daemons of its own.

use extendr_api::prelude::*;
use mirai_core::relay::{self, Ended, Relay};
use mirai_core::transport::Address;
use mirai_core::worker::{AutoExit, DialError, Options, Worker};

use crate::error::{Error, Result};
use crate::functions::functions;
use crate::r;
use crate::session::with_session;
use crate::tls::trust;

/// Passes tasks of the host at `url` on to the daemons of a profile until that host is gone.
/// `tls` is what to recognise that host by. `FALSE` if interrupted.
fn relay(name: &str, url: &str, tls: Nullable<String>, asyncdial: bool) -> Result<bool> {
    let below = with_session(|session| session.host(name).cloned())?;
    let address: Address = url.parse().map_err(Error::connect)?;
    let trust = tls.into_option().map(|text| trust(&text)).transpose();
    let trust = trust.map_err(|e| Error::connect(format!("'tls_host' cannot be used: {e}")))?;
    let options = Options {
        // `Relay::run` ends when the host is gone.
        autoexit: AutoExit::AfterTask,
        asyncdial,
        insist: false,
        tempdir: String::new(),
        interruptible: true,
        slots: relay::SLOTS,
        trust,
    };
    let relay = Relay::new(below);
    let dialled = Worker::dial(&address, &options, relay.clone(), None, r::interrupted);
    let mut worker = match dialled {
        Ok(worker) => worker,
        Err(DialError::Interrupted) => return Ok(false),
        Err(e) => return Err(Error::connect(e)),
    };
    match relay.run(&mut worker, r::interrupted) {
        Ended::Lost { .. } => Ok(true),
        Ended::Interrupted => {
            worker.leave();
            Ok(false)
        }
    }
}

functions! {
    fn relay(name, url, tls, asyncdial);
}
