package source

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"attentive.internal/pkg/fault"
)

// tryTimeout is how long a prefix may take to answer.
const tryTimeout = 30 * time.Second

// ErrUntried is wrapped by what Try returns where nothing is wrong and nothing
// proves that sources can be read.
var ErrUntried = errors.New("only a job shows whether it can be read")

// Try looks whether sources below a prefix can be read, with the credentials that
// reading them would use, and says what it found: the folder of a file prefix is
// opened, the server of an https prefix is asked for its head, the bucket of an s3
// prefix for one object. Its errors say what to do.
func (o *Opener) Try(ctx context.Context, prefix string) (found string, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	u, err := url.Parse(prefix)
	if err != nil {
		return "", fmt.Errorf("prefix %q: %w", prefix, err)
	}
	switch u.Scheme {
	case "https":
		return o.tryWeb(ctx, u)
	case "s3":
		return o.buckets.try(ctx, u)
	}
	return tryFolder(u.Path)
}

// tryFolder opens a folder as openFile does.
func tryFolder(path string) (found string, err error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return "", fmt.Errorf("%w: mount or create the folder, or let the worker's user read it", err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	folder, err := root.Open(".")
	if err == nil {
		err = folder.Close()
	}
	if err != nil {
		return "", fmt.Errorf("open %s: %w: let the worker's user read it", path, err)
	}
	return "the folder can be opened", nil
}

// tryWeb asks for the prefix itself, which most servers refuse: that they answer is
// what counts.
func (o *Opener) tryWeb(ctx context.Context, u *url.URL) (found string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, u.String(), nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: o.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("%w: check the address, the certificate and the firewall", err)
	}
	_ = response.Body.Close() // a head has none
	if response.StatusCode/100 == 5 {
		return "", fmt.Errorf("the server answers with status %d: %w", response.StatusCode, ErrUntried)
	}
	return fmt.Sprintf("the server answers, with status %d", response.StatusCode), nil
}

// try lists one object below u.
func (b *buckets) try(ctx context.Context, u *url.URL) (found string, err error) {
	ctx, cancel := context.WithCancel(ctx) // ends the listing
	defer cancel()
	key := strings.TrimPrefix(u.Path, "/")
	first, some := <-b.core.Client.ListObjects(ctx, u.Host, minio.ListObjectsOptions{Prefix: key, MaxKeys: 1})
	switch {
	case first.Err != nil:
		return "", b.untried(first.Err, u.Host)
	case some:
		return fmt.Sprintf("bucket %q can be listed, and has objects there", u.Host), nil
	}
	return fmt.Sprintf("bucket %q can be listed, and has no object there yet", u.Host), nil
}

// untried tells why a bucket is not listed. Reading objects takes another right
// than listing them.
func (b *buckets) untried(err error, bucket string) error {
	answer, ok := errors.AsType[minio.ErrorResponse](err)
	switch known := b.fault(err, fmt.Sprintf("bucket %q", bucket)); {
	case ok && answer.Code == "NoSuchBucket":
		return fmt.Errorf("there is no bucket %q at the service: correct the prefix, or s3.endpoint and s3.region", bucket)
	case fault.ClassOf(known) == fault.Blocked || !ok || answer.StatusCode != http.StatusForbidden:
		return known
	}
	return fmt.Errorf("bucket %q may not be listed by the worker's credentials (%s): %w", bucket, answer.Code, ErrUntried)
}
