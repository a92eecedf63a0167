package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/metrics"
	"attentive.internal/segment-worker/internal/compress"
	"attentive.internal/segment-worker/internal/stream"
)

// remoteFile is one file on its way: what is written is compressed and encrypted
// by a goroutine of its own, and uploaded by another one. Close returns once the
// receiver has it whole.
type remoteFile struct {
	list   *list
	slot   slot
	name   string
	stream *stream.Writer
	sum    checksum // of what was written
	bytes  int64    // that the receiver has, once it has all
	put    chan putResult
}

type putResult struct {
	bytes int64
	err   error
}

// create begins a file, unless it lies there whole.
func (l *list) create(ctx context.Context, at slot) (io.WriteCloser, error) {
	u := l.upload
	switch {
	case u.direct != nil:
		return l.createFinal(ctx, at)
	case u.checking:
		return &checkedFile{upload: u, slot: at}, nil
	}
	if f, ok := u.whole[at]; ok {
		return &keptFile{ctx: ctx, upload: u, file: f}, nil
	}
	return l.begin(ctx, at, u.newName()), nil
}

// begin starts the upload of a file.
func (l *list) begin(ctx context.Context, at slot, name string) *remoteFile {
	u := l.upload
	f := &remoteFile{list: l, slot: at, name: name, put: make(chan putResult, 1)}
	reader, writer := stream.New(ctx)
	f.stream = writer
	l.open = f
	l.uploads.Go(func() error {
		n, err := u.session.Put(ctx, f.name, reader)
		if err != nil {
			reader.CloseWithError(err)
		}
		f.put <- putResult{n, err}
		return err
	})
	if u.recipients != nil || u.settings.Compression != config.NoCompression {
		f.stream = f.pack(ctx, writer)
	}
	return f
}

// pack returns a stream that a goroutine compresses and encrypts into to: that costs
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
		err := u.packed(reader, to, entry)
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
func (u *upload) packed(from *stream.Reader, to io.Writer, entry compress.Entry) error {
	if u.recipients == nil {
		return u.compressed(from, to, entry)
	}
	encrypt := u.recipients.Encrypt
	if u.Destination.Segment.PGP.Armor {
		encrypt = u.recipients.EncryptArmored
	}
	message, err := encrypt(to)
	if err != nil {
		return err
	}
	if err := u.compressed(from, message, entry); err != nil {
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

// Close returns when everything is compressed, encrypted and uploaded.
func (f *remoteFile) Close() error {
	if err := f.stream.Close(); err != nil {
		return err
	}
	put := <-f.put
	if put.err != nil {
		return put.err
	}
	u := f.list.upload
	f.list.open = nil
	f.bytes = put.bytes
	if u.direct == nil {
		u.files = append(u.files, file{slot: f.slot, Temporary: f.name, Bytes: put.bytes, Plain: f.sum})
	}
	u.Metrics.Bytes(u.Destination.ID, metrics.Plain).Add(float64(f.sum.Bytes))
	u.Metrics.Bytes(u.Destination.ID, metrics.Uploaded).Add(float64(put.bytes))
	return nil
}

// discard has the upload give up and remove its file.
func (f *remoteFile) discard(err error) { f.stream.CloseWithError(err) }
