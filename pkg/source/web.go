package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"attentive.internal/pkg/fault"
)

const (
	// dialTimeout is for connecting, and once more for TLS.
	dialTimeout = 10 * time.Second
	// maxRedirects is how often a server may send us elsewhere.
	maxRedirects = 5
)

// newTransport is how servers are spoken to. Stored bytes arrive as they are
// stored: nothing is unpacked on the way.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:    dialTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		IdleConnTimeout:        30 * time.Second,
	}
}

// openWeb opens the source at u.
func (o *Opener) openWeb(ctx context.Context, u *url.URL, name string) (_ io.ReadCloser, size int64, err error) {
	client := &http.Client{Transport: o.transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fault.Permanentf(fault.SourceUnreadable, "read %s: its server redirects more than %d times", name, maxRedirects)
		}
		if r.URL.User != nil || r.URL.Scheme != u.Scheme || !o.prefixes.allow(r.URL) {
			return fault.Permanentf(fault.SourceForbidden,
				"read %s: its server redirects to host %q, to what lies below none of source_prefixes", name, r.URL.Host)
		}
		return nil
	}}
	return newRemote(ctx, name, o.patience, func(ctx context.Context, from int64, version string) (*part, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, fault.Permanentf(fault.SourceForbidden, "read %s: it is not a valid URL", name)
		}
		request.Header.Set("Accept-Encoding", "identity")
		if from > 0 {
			request.Header.Set("Range", "bytes="+strconv.FormatInt(from, 10)+"-")
			request.Header.Set("If-Match", version)
		}
		response, err := client.Do(request)
		if err != nil {
			return nil, webFault(err, name)
		}
		return webPart(response, from, name)
	})
}

// webPart is the body of a response that brings bytes.
func webPart(response *http.Response, from int64, name string) (*part, error) {
	want := http.StatusOK
	if from > 0 {
		want = http.StatusPartialContent
	}
	switch {
	case response.StatusCode == http.StatusOK && from > 0:
		return nil, errors.Join(fmt.Errorf("read %s: the server sends all of it again, not what follows byte %d", name, from), response.Body.Close())
	case response.StatusCode != want:
		return nil, errors.Join(statusFault(response.StatusCode, name), response.Body.Close())
	case response.ContentLength < 0 && response.ProtoMajor == 1 && len(response.TransferEncoding) == 0:
		return nil, errors.Join(fault.Permanentf(fault.SourceUnreadable,
			"read %s: its server says nowhere how long it is, so that a part would pass for the whole", name), response.Body.Close())
	}
	return newPart(response.Header, response.Body, response.ContentLength, from)
}

// webFault keeps the URL, whose query may hold a secret, out of the error.
func webFault(err error, name string) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f // what wraps it names the URL
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return opaque("read "+name, err)
}
