package broker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A stream of three replicas is written to a majority, and the client library reads
// from any: from one that lags, a key or an object that was stored a moment ago is
// missing, or is what it was before. What decides about work is asked of the leader.

// KeyValue opens a bucket of which Get and ListKeysFiltered are answered by the
// leader of its stream: what was stored before is seen, whoever stored it. The list
// has removed keys, too, for as long as the bucket has their marks. All else is
// the library's.
func (c *Conn) KeyValue(ctx context.Context, name string) (jetstream.KeyValue, error) {
	kv, err := c.JS.KeyValue(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open the bucket %s: %w", name, Explain(err))
	}
	return &bucketReads{kv, c}, nil
}

type bucketReads struct {
	jetstream.KeyValue
	conn *Conn
}

// Get returns the newest entry of key, as [jetstream.KeyValue] does.
func (b *bucketReads) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	m, err := b.conn.last(ctx, "KV_"+b.Bucket(), "$KV."+b.Bucket()+"."+key)
	if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && removes(m.Header) {
		return nil, jetstream.ErrKeyNotFound
	}
	if err != nil {
		return nil, err
	}
	return &entry{b.Bucket(), key, m}, nil
}

// removes reports whether a message of a bucket is the mark that a key was removed, or
// that of the broker that its time was over.
func removes(h nats.Header) bool {
	return h.Get("KV-Operation") != "" || h.Get(jetstream.MarkerReasonHeader) != ""
}

// ListKeysFiltered returns the keys that match any of the filters; a key that matches
// two is there twice.
func (b *bucketReads) ListKeysFiltered(ctx context.Context, filters ...string) (jetstream.KeyLister, error) {
	var keys lister
	for _, filter := range filters {
		prefix := "$KV." + b.Bucket() + "."
		err := b.conn.Subjects(ctx, "KV_"+b.Bucket(), prefix+filter, func(subject string, _ uint64) error {
			keys = append(keys, subject[len(prefix):])
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// lister is a list that is complete.
type lister []string

func (l lister) Keys() <-chan string {
	keys := make(chan string, len(l))
	for _, key := range l {
		keys <- key
	}
	close(keys)
	return keys
}

func (l lister) Stop() error { return nil }

// entry is one that is neither old nor removed.
type entry struct {
	bucket, key string
	m           *jetstream.RawStreamMsg
}

func (e *entry) Bucket() string                  { return e.bucket }
func (e *entry) Key() string                     { return e.key }
func (e *entry) Value() []byte                   { return e.m.Data }
func (e *entry) Revision() uint64                { return e.m.Sequence }
func (e *entry) Created() time.Time              { return e.m.Time }
func (e *entry) Delta() uint64                   { return 0 }
func (e *entry) Operation() jetstream.KeyValueOp { return jetstream.KeyValuePut }

// ObjectStore opens an object store of which GetInfo and List are answered by the leader
// of its stream, unless they are called with options. All else is the library's, also the
// GetInfo with which its Get and Put begin.
func (c *Conn) ObjectStore(ctx context.Context, name string) (jetstream.ObjectStore, error) {
	store, err := c.JS.ObjectStore(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open the object store %s: %w", name, Explain(err))
	}
	return &objectReads{store, c, name}, nil
}

type objectReads struct {
	jetstream.ObjectStore
	conn *Conn
	name string
}

// GetInfo returns what is known of an object, as [jetstream.ObjectStore] does.
func (o *objectReads) GetInfo(ctx context.Context, object string, opts ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	if len(opts) > 0 {
		return o.ObjectStore.GetInfo(ctx, object, opts...)
	}
	if object == "" {
		return nil, jetstream.ErrNameRequired
	}
	return o.info(ctx, o.meta()+base64.URLEncoding.EncodeToString([]byte(object)))
}

// meta is what the subjects begin with under which it is kept what objects are.
func (o *objectReads) meta() string { return "$O." + o.name + ".M." }

func (o *objectReads) info(ctx context.Context, subject string) (*jetstream.ObjectInfo, error) {
	m, err := o.conn.last(ctx, "OBJ_"+o.name, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, jetstream.ErrObjectNotFound
	}
	if err != nil {
		return nil, err
	}
	var info jetstream.ObjectInfo
	if err := json.Unmarshal(m.Data, &info); err != nil {
		return nil, jetstream.ErrBadObjectMeta
	}
	if info.Deleted {
		return nil, jetstream.ErrObjectNotFound
	}
	info.ModTime = m.Time
	return &info, nil
}

// List returns what is known of all objects, in no order, as [jetstream.ObjectStore]
// does. It asks for each.
func (o *objectReads) List(ctx context.Context, opts ...jetstream.ListObjectsOpt) (list []*jetstream.ObjectInfo, err error) {
	if len(opts) > 0 {
		return o.ObjectStore.List(ctx, opts...)
	}
	err = o.conn.Subjects(ctx, "OBJ_"+o.name, o.meta()+">", func(subject string, _ uint64) error {
		info, err := o.info(ctx, subject)
		if errors.Is(err, jetstream.ErrObjectNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look at the object store %s: %w", o.name, err)
		}
		list = append(list, info)
		return nil
	})
	if err == nil && len(list) == 0 {
		err = jetstream.ErrNoObjectsFound
	}
	return list, err
}

// lastAnswer is the broker's answer to STREAM.MSG.GET.
type lastAnswer struct {
	Error   *jetstream.APIError `json:"error"`
	Message *struct {
		Subject  string    `json:"subject"`
		Sequence uint64    `json:"seq"`
		Header   []byte    `json:"hdrs"`
		Data     []byte    `json:"data"`
		Time     time.Time `json:"time"`
	} `json:"message"`
}

// askAgain, and listAgain for what the broker has to look for, are how long the first of
// several equal requests may be without an answer before the next one is made; each other
// one may four times as long.
const (
	askAgain  = 500 * time.Millisecond
	listAgain = 2 * time.Second
)

// answered is what became of a request.
type answered struct {
	msg *nats.Msg
	err error
}

// ask makes a request that changes nothing, and again after a wait, until one of them is
// answered or ctx ends: while a leader is elected nobody answers, and the new one has not
// heard of it. A broker that is slow still answers the first.
func (c *Conn) ask(ctx context.Context, subject string, request []byte, wait time.Duration) (*nats.Msg, error) {
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	first := make(chan answered, 1)
	for ; ; wait *= 4 {
		asking.Go(func() {
			msg, err := c.NC.RequestWithContext(ctx, subject, request)
			select {
			case first <- answered{msg, err}:
			default: // another one was answered
			}
		})
		again := time.NewTimer(wait)
		select {
		case a := <-first:
			again.Stop()
			return a.msg, a.err
		case <-again.C:
		}
	}
}

// last asks the leader of a stream for the last message of a subject. It fails with
// [jetstream.ErrMsgNotFound] when there is none. The library asks any replica where
// the stream allows that, which those of buckets and object stores do.
func (c *Conn) last(ctx context.Context, stream, subject string) (*jetstream.RawStreamMsg, error) {
	request, err := json.Marshal(struct {
		Subject string `json:"last_by_subj"`
	}{subject})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	api := "$JS.API.STREAM.MSG.GET." + stream
	ctx, done := c.UnlessForbidden(ctx, api)
	defer done()
	answer, err := c.ask(ctx, api, request, askAgain)
	if err != nil {
		if errors.Is(context.Cause(ctx), ErrForbidden) {
			err = fmt.Errorf("%s: %w", api, context.Cause(ctx))
		}
		return nil, err
	}
	var said lastAnswer
	if err := json.Unmarshal(answer.Data, &said); err != nil {
		return nil, fmt.Errorf("decode the broker's answer: %w", err)
	}
	switch {
	case said.Error != nil && said.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, jetstream.ErrMsgNotFound
	case said.Error != nil:
		return nil, said.Error
	case said.Message == nil:
		return nil, errors.New("the broker's answer holds no message")
	}
	m := &jetstream.RawStreamMsg{Subject: said.Message.Subject, Sequence: said.Message.Sequence, Data: said.Message.Data, Time: said.Message.Time}
	if len(said.Message.Header) > 0 {
		if m.Header, err = nats.DecodeHeadersMsg(said.Message.Header); err != nil {
			return nil, fmt.Errorf("decode the broker's answer: %w", err)
		}
	}
	return m, nil
}
