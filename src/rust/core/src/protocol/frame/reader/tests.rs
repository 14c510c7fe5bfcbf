use super::*;
use crate::memory;
#[cfg(target_os = "linux")]
use crate::memory::{Body, Inset, Mark};
#[cfg(target_os = "linux")]
use crate::protocol::frame::{Flat, Frame};
use crate::protocol::frame::{append_holes, encode_head};
use crate::protocol::{Done, Kind, ToDaemon, ToHost};
use proptest::prelude::*;

fn stream_of(frames: &[(ToHost, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (meta, body) in frames {
        out.extend_from_slice(&encode_head(meta, body.len()));
        out.extend_from_slice(body);
    }
    out
}

/// Feeds `bytes` in pieces of the given sizes (repeating) and collects what comes out.
fn read_back<M: DeserializeOwned>(
    bytes: &[u8],
    pieces: &[usize],
    limits: Limits,
) -> Result<Vec<(M, Vec<u8>)>, FrameError> {
    let mut reader = FrameReader::<M>::new(limits);
    let mut out = Vec::new();
    let mut at = 0;
    let mut piece = pieces.iter().cycle();
    while at < bytes.len() {
        let want = *piece.next().unwrap();
        let (got, _) = reader
            .fill(|room| {
                let n = want.min(room.len()).min(bytes.len() - at);
                for (slot, byte) in room.iter_mut().zip(&bytes[at..at + n]) {
                    slot.write(*byte);
                }
                Ok(n)
            })
            .unwrap();
        at += got;
        while let Some(frame) = reader.next()? {
            out.push(frame);
        }
    }
    Ok(out)
}

#[test]
fn a_body_larger_than_the_read_buffer_arrives_whole() {
    let body: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    let done = ToHost::Done {
        seq: 9,
        outcome: Done::Value,
        spent: 0,
        notes: 0,
        error: None,
    };
    let frames = vec![(done.clone(), body), (ToHost::Leaving { begun: 0 }, vec![])];
    let got = read_back(&stream_of(&frames), &[usize::MAX], Limits::LINK).unwrap();
    assert_eq!(got, frames);
}

#[test]
fn an_announced_length_beyond_the_limit_is_refused_before_allocating() {
    let mut bytes = encode_head(&ToHost::Leaving { begun: 0 }, 0).to_vec();
    bytes[8..16].copy_from_slice(&(1u64 << 63).to_le_bytes());
    for limits in [Limits::HANDSHAKE, Limits::LINK] {
        let err = read_back::<ToHost>(&bytes, &[usize::MAX], limits).unwrap_err();
        assert!(matches!(err, FrameError::TooLarge(n) if n == 1 << 63));
    }
}

#[test]
fn a_large_announcement_without_bytes_takes_no_memory() {
    let mut bytes = encode_head(&ToHost::Leaving { begun: 0 }, 0).to_vec();
    bytes[8..16].copy_from_slice(&(1u64 << 40).to_le_bytes());
    bytes.extend_from_slice(&[7; 100]);
    let mut reader = FrameReader::<ToHost>::new(Limits::LINK);
    for _ in 0..2 {
        let mut rest = std::mem::take(&mut bytes);
        reader
            .fill(|room| {
                let n = rest.len();
                for (slot, byte) in room.iter_mut().zip(rest.drain(..)) {
                    slot.write(byte);
                }
                Ok(n)
            })
            .unwrap();
        assert!(reader.next().unwrap().is_none());
    }
    let partial = reader.partial.as_ref().unwrap();
    assert!(partial.body.capacity() <= 4 * FIRST_STEP);
}

fn any_message() -> impl Strategy<Value = ToHost> {
    prop_oneof![
        (any::<u16>(), any::<u32>(), ".{0,80}").prop_map(|(version, pid, tempdir)| {
            ToHost::Hello {
                version,
                pid,
                tempdir,
                slots: 1,
            }
        }),
        any::<u64>().prop_map(|seq| ToHost::Done {
            seq,
            outcome: Done::Value,
            spent: 70_000,
            notes: 3,
            error: Some("a message".into()),
        }),
        Just(ToHost::Leaving { begun: 0 }),
    ]
}

proptest! {
    #[test]
    fn frames_survive_any_fragmentation(
        frames in prop::collection::vec((any_message(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
        pieces in prop::collection::vec(1usize..200, 1..6),
    ) {
        let got = read_back(&stream_of(&frames), &pieces, Limits::LINK).unwrap();
        prop_assert_eq!(got, frames);
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        prefix in prop::bool::ANY,
    ) {
        let mut bytes = bytes;
        if prefix && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(b"mira");
        }
        let _ = read_back::<ToHost>(&bytes, &[7, 50], Limits::LINK);
        let _ = read_back::<ToDaemon>(&bytes, &[7, 50], Limits::HANDSHAKE);
    }

    #[test]
    fn flipped_bits_never_panic(at in 0usize..40, bit in 0u8..8) {
        let task = ToDaemon::Task { seq: 3, kind: Kind::Map, stream: Some([1; 6]), constants: Some(7), granted: 3, attached: 0, number: 9 };
        let mut bytes = encode_head(&task, 20).to_vec();
        bytes.extend_from_slice(&[1; 20]);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let _ = read_back::<ToDaemon>(&bytes, &[usize::MAX], Limits::LINK);
    }
}

/// Feeds `bytes` in pieces of the given size to a reader on a link that passes no descriptors.
fn feed_all(bytes: &[u8], piece: usize) -> Result<Vec<(ToHost, Arrival)>, FrameError> {
    let mut reader = FrameReader::<ToHost>::new(Limits::LINK);
    let mut out = Vec::new();
    for piece in bytes.chunks(piece) {
        let mut rest = piece;
        while !rest.is_empty() {
            rest = &rest[reader.feed(rest).map_err(FrameError::Memory)?..];
            while let Some(frame) = reader.next_arrival()? {
                out.push(frame);
            }
        }
    }
    Ok(out)
}

/// A frame with a list of holes as an honest peer would never send it.
fn with_holes(body: &[u8], holes: &[Hole]) -> Vec<u8> {
    let mut head = encode_head(&ToHost::Leaving { begun: 0 }, body.len());
    append_holes(&mut head, holes.iter().copied());
    [&head, body].concat()
}

#[test]
fn large_parts_that_are_announced_fit_into_the_body() {
    let body = [7; 2 * APART];
    let hole = |at, len| Hole {
        at,
        len,
        changed: false,
    };
    let most = body.len() as u64;
    let lies = [
        vec![hole(0, most + 1)],
        vec![hole(0, most), hole(0, 1)],
        vec![hole(0, u64::MAX), hole(0, 1)],
        vec![hole(1, most)],
        vec![hole(2, 1), hole(1, 1)],
        vec![hole(0, 0)],
        vec![hole(0, 1); MOST_DESCRIPTORS + 1],
        vec![Hole {
            changed: true,
            ..hole(0, 1)
        }],
    ];
    for lie in lies {
        let got = feed_all(&with_holes(&body, &lie), 1000);
        assert!(matches!(got, Err(FrameError::Holes)), "{lie:?}");
    }
    for truth in [vec![hole(0, most)], vec![hole(5, 10), hole(5, most - 20)]] {
        let mut got = feed_all(&with_holes(&body, &truth), 1000).unwrap();
        let arrival = got.pop().unwrap().1;
        assert!(memory::Content::from(arrival).plain()[..] == body);
    }
}

#[test]
fn large_parts_without_bytes_leave_room_for_others() {
    let hole = Hole {
        at: 10,
        len: 1 << 45,
        changed: false,
    };
    let mut bytes = with_holes(&[7; 100], &[hole]);
    bytes[8..16].copy_from_slice(&(hole.len + 20).to_le_bytes());
    // Together far more than a process can have addresses for.
    let readers: Vec<_> = (0..100)
        .map(|_| {
            let mut reader = FrameReader::<ToHost>::new(Limits::LINK);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                rest = &rest[reader.feed(rest).unwrap()..];
                assert!(reader.next_arrival().unwrap().is_none());
            }
            reader
        })
        .collect();
    for reader in &readers {
        let partial = reader.partial.as_ref().unwrap();
        assert!(partial.body.capacity() <= 2 * FIRST_STEP);
        assert_eq!(partial.apart.filling.is_some(), cfg!(target_os = "linux"));
    }
    assert!(Vec::<u8>::new().try_reserve_exact(64 << 20).is_ok());
}

/// A message with large parts, and the same without segments.
#[cfg(target_os = "linux")]
fn of_large_parts() -> (Frame, Vec<u8>) {
    let (mut bytes, mut plain, mut insets) = (Vec::new(), Vec::new(), Vec::new());
    let sizes = [
        (0, APART),
        (0, 3),
        (100, APART + 1),
        (7, 2 * APART),
        (0, APART),
        (50_000, 1),
    ];
    for (i, (before, size)) in sizes.into_iter().enumerate() {
        let between: Vec<u8> = (0..before).map(|j| (j * 3 + i) as u8).collect();
        let content: Vec<u8> = (0..size).map(|j| (j * 7 + i) as u8).collect();
        plain.extend_from_slice(&between);
        plain.extend_from_slice(&content);
        bytes.extend_from_slice(&between);
        insets.push(Inset {
            at: bytes.len(),
            segment: memory::Segment::copy_of(&content).unwrap(),
        });
    }
    let frame = Frame::new(
        &ToHost::Leaving { begun: 3 },
        Body::new(bytes.into(), insets),
    );
    (frame, plain)
}

#[cfg(target_os = "linux")]
#[test]
fn without_mappings_large_parts_are_put_back() {
    let (frame, plain) = of_large_parts();
    let flat = Flat::from(frame.clone());
    let stream: Vec<u8> = flat.parts().flatten().copied().collect();
    drop(flat);
    for left in 0..5 {
        let mut all: Vec<_> = std::iter::from_fn(|| memory::Filling::new(1)).collect();
        let unmapped = Flat::from(frame.clone());
        let bytes: Vec<u8> = unmapped.parts().flatten().copied().collect();
        assert!(bytes.ends_with(&plain));
        all.truncate(all.len() - left);
        for piece in [1 << 20, 4097, 999] {
            let got = feed_all(&stream.repeat(2), piece).unwrap();
            let apart = got.iter().map(|(_, arrival)| arrival.apart.len());
            assert_eq!((got.len(), apart.sum()), (2, left));
            for (_, arrival) in got {
                assert!(memory::Content::from(arrival).plain()[..] == plain[..]);
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_large_part_that_cannot_grow_becomes_a_part_of_the_body() {
    let parts: Vec<u8> = (0..5_000_000u32).map(|i| (i / 3) as u8).collect();
    let hole = |at, len| Hole {
        at,
        len,
        changed: false,
    };
    let stream = with_holes(&parts, &[hole(10, 4_000_000), hole(20, 900_000)]);
    memory::Filling::refuse_to_grow();
    for piece in [4 << 20, 100_000, 4097] {
        let got = feed_all(&stream.repeat(2), piece).unwrap();
        assert_eq!(got.len(), 2);
        for (_, arrival) in got {
            assert_eq!(arrival.apart.len(), 1);
            assert!(memory::Content::from(arrival).plain()[..] == parts[..]);
        }
    }
}

#[cfg(target_os = "linux")]
proptest! {
    #[test]
    fn large_parts_arrive_in_memory_of_their_own(
        // How many bytes come before each, and its size.
        segments in prop::collection::vec((0usize..100_000, prop_oneof![1usize..1000, APART - 2..3 * APART]), 0..5),
        after in 0usize..100_000,
        piece in prop_oneof![1usize..3000, 3000usize..300_000],
    ) {
        let mut count = 0u8;
        let mut some = |n: usize| -> Vec<u8> {
            count += 1;
            (0..n).map(|i| (i as u8).wrapping_mul(count)).collect()
        };
        let mut bytes = Vec::new();
        let mut insets = Vec::new();
        let mut plain = Vec::new();
        for (before, size) in segments {
            let (before, content) = (some(before), some(size));
            plain.extend_from_slice(&before);
            plain.extend_from_slice(&content);
            bytes.extend_from_slice(&before);
            insets.push(Inset { at: bytes.len(), segment: memory::Segment::copy_of(&content).unwrap() });
        }
        let rest = some(after);
        bytes.extend_from_slice(&rest);
        plain.extend_from_slice(&rest);
        let apart = insets.iter().filter(|inset| inset.segment.len() >= APART).count();

        let mut marks = Vec::new();
        let mut before = 0;
        for inset in &insets {
            marks.push(Mark { at: inset.at + before, len: inset.segment.len() });
            before += inset.segment.len();
        }
        let message = ToHost::Leaving { begun: 3 };
        let frame = Frame::new(&message, Body::new(bytes.into(), insets));
        let flat = Flat::from(frame.clone());
        let marked = Flat::from(Frame::new(&message, Body::marked(plain.clone().into(), marks)));
        prop_assert!(marked.parts().flatten().eq(flat.parts().flatten()));
        let stream: Vec<u8> = flat.parts().flatten().copied().collect();
        prop_assert_eq!(stream.len(), flat.len());
        let stream = stream.repeat(2);
        let got = feed_all(&stream, piece).unwrap();
        prop_assert_eq!(got.len(), 2);
        for (meta, arrival) in got {
            prop_assert_eq!(&meta, &message);
            prop_assert!(arrival.apart.len() == apart);
            prop_assert!(memory::Content::from(arrival).plain()[..] == plain[..]);
        }
        // A reader that knows nothing of that has the same bytes.
        let copied = frame.plain();
        prop_assert!(copied.body == plain);
    }
}
