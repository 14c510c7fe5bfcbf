//! A host without descriptors for strangers.

use super::*;

/// Lets this process have so many descriptors; returns how many it might have before.
fn limit_descriptors(most: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is written to, then read from.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        let before = std::mem::replace(&mut limit.rlim_cur, most);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
        before
    }
}

#[test]
fn without_descriptors_for_newcomers_the_host_waits_for_some() {
    use rustix::net::{AddressFamily, SocketType, connect, socket};
    let places = SCHEMES.map(Place::new);
    let callers = places
        .each_ref()
        .map(|_| [(); 20].map(|()| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()));
    // There is no descriptor below this that is free.
    let before = limit_descriptors(3);
    for (place, callers) in places.iter().zip(&callers) {
        let to: std::net::SocketAddrV4 = authority(&place.url).parse().unwrap();
        for caller in callers {
            connect(caller, &to).unwrap();
        }
    }
    let worked = processor();
    thread::sleep(Duration::from_secs(2));
    let worked = processor() - worked;
    for place in &places {
        place.goes_on();
    }
    limit_descriptors(before);
    assert!(worked < Duration::from_millis(300), "{worked:?}");
    for place in places {
        let more = echoing(dial(&place.url, place.trust.clone()));
        until(|| place.host.counts().connections == 2);
        place.goes_on();
        place.close();
        more.join().unwrap();
    }
}
