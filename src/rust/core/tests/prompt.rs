//! Small frames leave at once (no Nagle): at either end, by every scheme.

mod common;

use std::sync::{Arc, Mutex, mpsc};

use common::*;
use mirai_core::host::Host;
use mirai_core::tls::{Identity, Trust};
use mirai_core::transport::nng::{self, Connection};
use mirai_core::transport::{self, Address, NetworkUrl};

struct Deaf;

impl nng::Receiver for Deaf {
    fn received(&self, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
    fn ended(&self) {}
}

#[test]
fn small_frames_leave_at_once() {
    for scheme in SCHEMES {
        let Ok(Address::Network(url)) = any_port(scheme).parse() else {
            panic!("a URL of the network");
        };
        let identity: Option<Identity> = url
            .scheme
            .is_secure()
            .then(|| Host::single_use_identity(&[Address::Network(url.clone())]).unwrap());
        let trust = identity
            .as_ref()
            .map(|i| Trust::from_pem(i.for_daemons()).unwrap());
        let (tell, accepted) = mpsc::channel::<Arc<Connection>>();
        let tell = Mutex::new(tell);
        let listening = transport::listen(&url, identity.as_ref(), move |connection| {
            tell.lock().unwrap().send(connection).unwrap();
        })
        .unwrap();
        let there = NetworkUrl {
            port: listening.port(),
            ..url
        };
        let near = nng::dial(&there, trust.as_ref(), None, || false).unwrap();
        let receiver: Arc<dyn nng::Receiver> = Arc::new(Deaf);
        near.start(Arc::downgrade(&receiver));
        let far = accepted.recv_timeout(LONG).unwrap();
        assert!(near.is_prompt().unwrap(), "{scheme}: the end that dialled");
        assert!(far.is_prompt().unwrap(), "{scheme}: the end that listens");
        near.close();
        far.close();
    }
}
