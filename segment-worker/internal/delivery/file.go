package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/metrics"
	"attentive.internal/segment-worker/internal/compress"
	"attentive.internal/segment-worker/internal/stream"
)

// remoteFile is one file on its way: what is written is compressed and encrypted
// by a goroutine of its own, and uploaded by another one. Close returns when they
// have everything; whole, once the receiver has.
type remoteFile struct {
	list   *list
	slot   slot
	name   string
	stream *stream.Writer
	sum    checksum // of what was written

	done  chan struct{} // closed at the end of the upload
	err   error         // of the upload, then
	bytes int64         // that the receiver has, then
}

// create begins a file, unless it lies there whole.
func (l *list) create(ctx context.Context, at slot) (io.WriteCloser, error) {
	u := l.upload
	if u.direct != nil {
		return l.createFinal(ctx, at)
	}
	if err := u.enlist(at); err != nil {
		return nil, err
	}
	if u.checking {
		return &checkedFile{upload: u, slot: at}, nil
	}
	if f, ok := u.whole[at]; ok {
		return &keptFile{ctx: ctx, upload: u, file: f}, nil
	}
	return l.begin(ctx, at, u.newName()), nil
}

// The ledger's entry of a job names its files, and must not become larger than what
// the broker takes, 1 MiB: a job that cannot be committed would be uploaded again and
// again. What else stands in the entry has the rest.
const (
	maxListed     = 832 << 10
	listedFile    = 360 // bytes for a file beside the names that stand in it
	listedSegment = 100 // for a segment and what is said of it
	listedWarning = 300 // for the warning that it is split
)

// enlist makes room for a file in the ledger's entry. It fails, Permanent, when there is
// none.
func (u *upload) enlist(at slot) error {
	segment, err := json.Marshal(at.Segment)
	if err != nil {
		return err
	}
	u.listed += listedFile + len(u.Destination.ID) + 2*len(u.settings.ClientDomain) + len(segment)
	switch at.Part {
	case 1:
		u.listed += listedSegment + 2*len(segment)
	case 2:
		u.listed += listedWarning + len(segment)
	}
	if u.listed > maxListed {
		return fault.Permanentf(fault.TooLarge, "segment %q, part %d: the job is of more files than can be published at once; "+
			"raise split_rows or split_megabytes, or send it as several jobs", at.Segment, at.Part)
	}
	return nil
}

// begin starts a file. It is filled while the receiver takes the rest of the one
// before, and uploaded when that is whole.
func (l *list) begin(ctx context.Context, at slot, name string) *remoteFile {
	u := l.upload
	f := &remoteFile{list: l, slot: at, name: name, done: make(chan struct{})}
	reader, writer := stream.New(ctx)
	f.stream = writer
	before := l.finishing
	l.open = f
	l.uploads.Go(func() error {
		defer close(f.done)
		if f.err = before.wait(); f.err == nil {
			f.bytes, f.err = u.session.Put(ctx, f.name, reader)
		}
		if f.err != nil {
			reader.CloseWithError(f.err)
		}
		return f.err
	})
	if u.recipients != nil || u.settings.Compression != config.NoCompression {
		f.stream = f.pack(ctx, writer)
	}
	return f
}

// pack returns a stream that goroutines compress and encrypt into to: that costs
// about as much as all that comes before it.
func (f *remoteFile) pack(ctx context.Context, to *stream.Writer) *stream.Writer {
	// An archive wants a name for what it holds. That of the file is not known yet,
	// and one that two files share would overwrite one when they are unpacked: so it
	// tells the segment and the part, which are the same in every attempt.
	u := f.list.upload
	entry := compress.Entry{
		Name: fmt.Sprintf("%s_subscriber_segment_%s_%d_%d.csv",
			u.settings.ClientDomain, u.run.Job.GetId(), slices.Index(u.order, f.slot.Segment)+1, f.slot.Part),
		Time: u.Now(),
	}
	reader, writer := stream.New(ctx)
	f.list.uploads.Go(func() error {
		err := u.packed(ctx, reader, to, entry)
		if err == nil {
			return to.Close()
		}
		reader.CloseWithError(err)
		to.CloseWithError(err)
		return err
	})
	return writer
}

// packed writes all of from to to, compressed and encrypted.
func (u *upload) packed(ctx context.Context, from *stream.Reader, to *stream.Writer, entry compress.Entry) error {
	if u.recipients == nil {
		return u.compressed(from, to, entry)
	}
	encrypt := u.recipients.Encrypt
	if u.Destination.Segment.PGP.Armor {
		encrypt = u.recipients.EncryptArmored
	}
	message, err := encrypt(ctx, to)
	if err != nil {
		return err
	}
	if err := u.compressed(from, message, entry); err != nil {
		to.CloseWithError(err) // or the message might wait for the receiver
		message.Discard()
		return err
	}
	return message.Close()
}

// compressed writes all of from to to, compressed.
func (u *upload) compressed(from *stream.Reader, to io.Writer, entry compress.Entry) error {
	plain, err := compress.New(to, u.settings.Compression, entry)
	if err != nil {
		return err
	}
	if _, err := from.WriteTo(plain); err != nil {
		return errors.Join(err, plain.Discard())
	}
	return plain.Close()
}

func (f *remoteFile) Write(p []byte) (int, error) {
	f.sum.add(p)
	return f.stream.Write(p)
}

// Close hands over what is left, and waits for the file before.
func (f *remoteFile) Close() error {
	if err := f.stream.Close(); err != nil {
		return err
	}
	before := f.list.finishing
	f.list.open, f.list.finishing = nil, f
	return before.whole()
}

// wait returns at the end of the upload of f, if there is any.
func (f *remoteFile) wait() error {
	if f == nil {
		return nil
	}
	<-f.done
	return f.err
}

// whole returns when f, if there is any, is compressed, encrypted and uploaded, and
// notes it. It is called once.
func (f *remoteFile) whole() error {
	if err := f.wait(); f == nil || err != nil {
		return err
	}
	u := f.list.upload
	if u.direct == nil {
		u.files = append(u.files, file{slot: f.slot, Temporary: f.name, Bytes: f.bytes, Plain: f.sum})
	}
	u.Metrics.Bytes(u.Destination.ID, metrics.Plain).Add(float64(f.sum.Bytes))
	u.Metrics.Bytes(u.Destination.ID, metrics.Uploaded).Add(float64(f.bytes))
	return nil
}

// discard has the upload give up and remove its file.
func (f *remoteFile) discard(err error) { f.stream.CloseWithError(err) }
