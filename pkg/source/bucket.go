package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"attentive.internal/pkg/fault"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3 says where the buckets of s3 URLs are. The credentials are those that every
// S3 client of the machine uses, looked for in this order: the variables
// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; the shared file
// ~/.aws/credentials (AWS_SHARED_CREDENTIALS_FILE, AWS_PROFILE); the role of the
// machine or pod. Without any, requests are not signed.
type S3 struct {
	// Endpoint is the URL of the service. Empty: https://s3.amazonaws.com.
	Endpoint string
	// Region of the buckets; empty: the service is asked.
	Region string
}

// DefaultEndpoint is where buckets are unless the configuration says otherwise.
const DefaultEndpoint = "https://s3.amazonaws.com"

// buckets reads objects of an S3 service.
type buckets struct {
	core  *minio.Core
	creds *credentials.Credentials
}

func newBuckets(cfg S3, transport http.RoundTripper) (*buckets, error) {
	if cfg.Endpoint == "" {
		cfg.Endpoint = DefaultEndpoint
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Host == "" || u.Path != "" && u.Path != "/" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("s3 endpoint %q: is not of the form https://host", cfg.Endpoint)
	}
	creds := credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
	})
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds: creds, Secure: u.Scheme == "https", Region: cfg.Region, Transport: transport,
		MaxRetries: 1, // who reads knows when to try again
	})
	if err != nil {
		return nil, fmt.Errorf("s3 endpoint %q: %w", cfg.Endpoint, err)
	}
	return &buckets{core: core, creds: creds}, nil
}

// open opens the object that u names.
func (b *buckets) open(ctx context.Context, u *url.URL, limit patience, name string) (_ io.ReadCloser, size int64, err error) {
	if u.RawQuery != "" || u.Fragment != "" {
		return nil, 0, fault.Permanentf(fault.SourceForbidden, `read %s: it holds a query or a fragment; write "?" and "#" of a key as %%3F and %%23`, name)
	}
	return newRemote(ctx, name, limit, func(ctx context.Context, from int64, version string) (*part, error) {
		var opts minio.GetObjectOptions
		if from > 0 {
			opts.Set("Range", "bytes="+strconv.FormatInt(from, 10)+"-")
			opts.Set("If-Match", version)
		}
		body, info, header, err := b.core.GetObject(ctx, u.Host, strings.TrimPrefix(u.Path, "/"), opts)
		if err != nil {
			return nil, b.fault(err, name)
		}
		return newPart(header, body, info.Size, from)
	})
}

// fault classifies the failure of a request. A credential that the service does
// not know is not the job's fault; nor is one that may not read an object, which
// is also what a service says of an object that is not there yet.
func (b *buckets) fault(err error, name string) error {
	answer, ok := errors.AsType[minio.ErrorResponse](err)
	switch {
	case !ok || answer.StatusCode == 0:
		return webFault(err, name)
	case answer.Code == "InvalidAccessKeyId", answer.Code == "SignatureDoesNotMatch", answer.Code == "ExpiredToken",
		answer.Code == "InvalidToken", answer.Code == "TokenRefreshRequired":
		b.creds.Expire() // they are looked for again: perhaps they have changed
		return fault.Blockedf(fault.ScopeDestination, fault.LogInRefused,
			"read %s: the s3 service refuses the worker's credentials (%s); renew those in its environment or shared file", name, answer.Code)
	case answer.StatusCode == http.StatusForbidden, answer.StatusCode == http.StatusUnauthorized:
		b.creds.Expire()
		return fmt.Errorf("read %s: the s3 service does not let the worker's credentials read it (%s); allow it", name, answer.Code)
	}
	return statusFault(answer.StatusCode, name)
}
