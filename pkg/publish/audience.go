package publish

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrAudienceExists is returned for a name under which another audience lies.
// It is not replaced: a job may be reading it.
var ErrAudienceExists = errors.New("another audience has this name")

// Audience stores the bytes of r as an object of the name, and returns a source
// that refers to them and carries their digest. Format and compression are for
// the caller to set. Storing the same bytes again under the same name is fine;
// other bytes fail with ErrAudienceExists. When it fails, no job can read a
// part of them.
//
// It takes as long as r takes and the broker goes on storing. What is not
// stored within the broker's time-out of a few seconds ends it, and so does
// ctx.
func (c *Client) Audience(ctx context.Context, name string, r io.Reader) (*attentivev1.Source, error) {
	digest, err := c.audience(ctx, name, r)
	if err != nil {
		return nil, fmt.Errorf("store audience %.200q in %s: %w", name, broker.ObjectsAudiences, broker.Explain(err))
	}
	return &attentivev1.Source{Location: &attentivev1.Source_Object{Object: name}, Sha256: digest}, nil
}

func (c *Client) audience(ctx context.Context, name string, r io.Reader) ([]byte, error) {
	objects, err := c.conn.JS.ObjectStore(ctx, broker.ObjectsAudiences) // not by the leader: publishers may not read audiences
	if err != nil {
		return nil, err
	}
	r = &untilDone{ctx: ctx, r: r, left: contract.MaxSourceBytes}
	there, err := objects.GetInfo(ctx, name)
	switch {
	case err == nil:
		return compare(there.Digest, r)
	case !errors.Is(err, jetstream.ErrObjectNotFound):
		return nil, err
	}
	// Without a deadline the time-out is counted for each chunk, so that it
	// fits every size. A cancelled ctx ends the reader instead, and the chunks
	// that were stored are removed with a context that is still good.
	info, err := objects.Put(context.WithoutCancel(ctx), jetstream.ObjectMeta{Name: name}, r)
	if err != nil {
		return nil, err
	}
	return jetstream.DecodeObjectDigest(info.Digest)
}

// compare returns the digest of r if it is the one of the stored object.
func compare(stored string, r io.Reader) ([]byte, error) {
	want, err := jetstream.DecodeObjectDigest(stored)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		return nil, err
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return nil, fmt.Errorf("%w: choose a name that no other audience has", ErrAudienceExists)
	}
	return want, nil
}

// untilDone reads from r until ctx ends, and no more than a source may have.
type untilDone struct {
	ctx  context.Context //nolint:containedctx // lives for one call of Audience
	r    io.Reader
	left int64
}

func (u *untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	n, err := u.r.Read(p)
	if u.left -= int64(n); u.left < 0 {
		return 0, fault.Permanentf(fault.TooLarge, "it has more than %d bytes, which no worker reads: send it as several", int64(contract.MaxSourceBytes))
	}
	return n, err
}
